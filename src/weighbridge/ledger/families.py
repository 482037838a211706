"""Tensors alike but for the numbers in their names, judged once for all.

DeepSeek-V3 has 91,991 tensors and some sixty families. What a tensor is (role, parameter or buffer or extra, how many
elements) follows from its family, so it is decided sixty times, not ninety thousand.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from weighbridge.ledger.architecture import Architecture
from weighbridge.ledger.dtype import DType
from weighbridge.ledger.errors import Refused, Unknown
from weighbridge.ledger.packing import elements_in, serves
from weighbridge.ledger.roles import role_of
from weighbridge.ledger.stated import NOTHING, Stated
from weighbridge.ledger.tensor import Row, Rows, numel

PARAMETER, BUFFER, EXTRA = "parameter", "buffer", "extra"
MTP, MTP_COPIES, TIED_COPIES = "mtp_layers", "mtp_copies", "tied_copies"

_NUMBER = re.compile(r"\d+")
_DIGITS = b"0123456789"
# How the stacks of decoder layers are called: an MTP layer is one more of the same stack.
_STACKS = ("model.layers.", "layers.", "language_model.model.layers.", "model.language_model.layers.", "blk.")
_SHARED_BASES = frozenset({"vera_A", "vera_B", "randlora_A", "randlora_B"})
_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
_MOST_MTP = 64
_MOST_FAMILIES = 50_000  # real models have tens to a few thousand; names are judged one family at a time
# DeepSeek's MTP layer stores the model's embedding and head once more.
_MTP_COPY = (
    "embed_tokens.weight",
    "shared_head.head.weight",
    "nextn.embed_tokens.weight",
    "nextn.shared_head_head.weight",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Tensors of one name pattern, dtype and shape. `elements` is the logical count of each of them."""

    pattern: str
    dtype: DType
    shape: tuple[int, ...]
    role: str
    kind: str
    extra: str | None
    elements: int
    bias: bool
    adapter: bool
    trainable: bool
    source: Rows
    index: Sequence[int]  # which of the source's rows

    @property
    def count(self) -> int:
        """Its tensors."""
        return len(self.index)

    @property
    def first(self) -> Row:
        """The first of its tensors: all others are like it."""
        return self.source[self.index[0]]

    @property
    def names(self) -> list[str]:
        """Its tensors' names."""
        names = self.source.names
        return [names[at] for at in self.index]

    @property
    def rows(self) -> list[Row]:
        """Its tensors as stored."""
        return [self.source[at] for at in self.index]

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors: alike in dtype and shape, they are alike in size."""
        return self.first.nbytes * self.count

    @property
    def total(self) -> int:
        """Logical elements of all its tensors together."""
        return self.elements * self.count


def pattern_of(name: str) -> str:
    """The name with every number written "#"."""
    return _NUMBER.sub("#", name)


def group(rows: Rows, architecture: Architecture, stated: Stated = NOTHING) -> list[list[int]]:
    """Places of rows alike in name without digits, dtype and shape, and in what is stated of them.

    MTP layers stand apart, which differ from the others by number alone.
    """
    names = rows.names
    # All names at once: joined, stripped of digits, split again. One by one takes three times as long.
    bare = "\n".join(names).encode("utf-8", "surrogatepass").translate(None, _DIGITS).split(b"\n")
    if len(bare) != len(names):  # a name with a line break in it, or no rows
        bare = [name.encode("utf-8", "surrogatepass").translate(None, _DIGITS) for name in names]
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    # Equal kinds are one object, and comparing objects beats comparing shapes.
    keys: Iterable[tuple[Any, ...]] = zip(bare, map(id, rows.kinds), strict=True)
    if not stated.empty:
        keys = ((*key, *stated.of(name)) for key, name in zip(keys, names, strict=True))
    for at, key in enumerate(keys):
        groups[key].append(at)
    beyond = _beyond(
        architecture, {stack for stack in _STACKS if any(key[0].startswith(_bare(stack)) for key in groups)}
    )
    apart = {at for at, name in enumerate(names) if name.startswith(beyond)} if beyond else ()
    if not apart:
        return list(groups.values())
    parted = []
    for members in groups.values():
        if apart.isdisjoint(members):
            parted.append(members)
        else:
            parts = ([at for at in members if at not in apart], [at for at in members if at in apart])
            parted += [part for part in parts if part]
    return parted


def _bare(stack: str) -> bytes:
    """How a name of that stack begins without its digits: "model.layers." + "61" + "." and so on."""
    return f"{stack}.".encode()


def _beyond(architecture: Architecture, stacks: Iterable[str] = _STACKS) -> tuple[str, ...]:
    """Prefixes of the stacks' layers that lie beyond the model's own."""
    if not architecture.mtp_layers or architecture.layers is None:
        return ()
    # DeepSeek-V3 has one, others a few; a forged config may have billions.
    last = architecture.layers + min(architecture.mtp_layers, _MOST_MTP)
    return tuple(f"{stack}{layer}." for stack in stacks for layer in range(architecture.layers, last))


def judge(
    rows: Rows,
    *,
    architecture: Architecture,
    metadata: Mapping[str, object],
    adapter_files: frozenset[int],
    stated: Stated = NOTHING,
) -> list[Family]:
    """All families of a model, each with its verdict.

    Raises:
        Unknown: packed weights whose number of elements cannot be told.

    """
    stated = stated.freezing(rows.names, architecture.frozen)
    groups = group(rows, architecture, stated)
    if len(groups) > _MOST_FAMILIES:
        raise Refused(f"{len(groups):,} kinds of tensors, more than any model has", fix="do not trust this file")
    beyond = _beyond(architecture)
    patterns = [pattern_of(rows.names[members[0]]) for members in groups]
    leaves = _neighbors(patterns)
    coded = {p for p, members in zip(patterns, groups, strict=True) if rows.kinds[members[0]].dtype.name not in _PLAIN}
    shapes = _Shapes(rows, groups, patterns)
    containers = containers_of(leaves)
    families = []
    for pattern, members in zip(patterns, groups, strict=True):
        first = rows[members[0]]
        module, _, leaf = pattern.rpartition(".")
        siblings = leaves[module]
        if "absmax" in siblings and not shapes.has(f"{first.name}.absmax"):
            siblings -= {"absmax"}  # another layer's, of which only the number in its name differs
        known_kind, known_role, known_elements, frozen = stated.of(first.name)
        kind, elements, packed = PARAMETER, numel(first.shape), False
        if known_kind is not None:
            extra = None if known_kind in (PARAMETER, BUFFER) else known_kind
            kind = BUFFER if known_kind == BUFFER else PARAMETER
        else:
            extra = serves(leaf, siblings, frozenset(s for s in siblings if f"{module}.{s}" in coded))
        if extra is None and known_kind is None:
            bits, groups_of = architecture.packing_of(first.name.rpartition(".")[0])
            described = metadata.get(f"{first.name.rpartition('.')[0]}.weight") if "qdata" in leaf else None
            unpacked = elements_in(
                leaf,
                first.dtype,
                first.shape,
                siblings=siblings,
                sibling=lambda other, name=first.name: shapes.of(f"{name.rpartition('.')[0]}.{other}"),
                method=architecture.quantization,
                bits=bits,
                group=groups_of,
                described=described if isinstance(described, str) else None,
            )
            if unpacked is not None:
                elements, packed = unpacked, True
            elif is_unknown_code(leaf, first, architecture.quantization, layer=module not in containers):
                method = architecture.quantization or "an unknown method"
                raise Unknown(f"{pattern!r} of dtype {first.dtype}, packed by {method}")
            elif is_buffer(module, leaf, first, siblings, architecture.model_type):
                kind = BUFFER
            if (beyond and first.name.startswith(beyond)) or _is_mtp(pattern):
                extra = MTP_COPIES if first.name.endswith(_MTP_COPY) else MTP
        if extra is not None:
            kind = EXTRA
        families.append(
            Family(
                pattern=pattern,
                dtype=first.dtype,
                shape=first.shape,
                role=known_role or role_of(pattern, first.shape),
                kind=kind,
                extra=extra,
                elements=elements if known_elements is None else known_elements,
                bias=leaf == "bias" or leaf.endswith(("_bias", "/bias")) or leaf.startswith("bias_"),
                adapter=first.file in adapter_files,
                trainable=kind == PARAMETER
                and not frozen
                and (frozen is False or (first.dtype.kind in ("float", "complex") and not packed))
                and (first.file in adapter_files or not adapter_files),
                source=rows,
                index=members,
            )
        )
    return families


def _neighbors(patterns: Sequence[str]) -> dict[str, frozenset[str]]:
    """{module: the leaves stored in it}. bitsandbytes hangs `absmax` below the weight itself: a neighbor too."""
    modules: dict[str, set[str]] = {}
    for pattern in patterns:
        module, _, leaf = pattern.rpartition(".")
        modules.setdefault(module, set()).add(leaf)
    for module in list(modules):
        owner, _, leaf = module.rpartition(".")
        if leaf in modules.get(owner, ()):
            joined = modules[owner] | modules[module]
            modules[owner], modules[module] = joined, joined
    return {module: frozenset(found) for module, found in modules.items()}


def containers_of(modules: Iterable[str]) -> set[str]:
    """The modules that hold others."""
    found = set()
    for module in modules:
        while module:
            module = module.rpartition(".")[0]
            if module in found:
                break
            found.add(module)
    return found


def _is_mtp(pattern: str) -> bool:
    return any(part in ("mtp", "nextn") or part.startswith("mtp_") for part in pattern.split("."))


class _Shapes:
    """Shapes by full name, indexed only when a packed weight asks for its neighbors."""

    __slots__ = ("_groups", "_index", "_names", "_patterns", "_rows")

    def __init__(self, rows: Rows, groups: list[list[int]], patterns: list[str]) -> None:
        self._rows, self._groups, self._patterns = rows, groups, patterns
        self._index: dict[str, tuple[int, ...]] | None = None
        self._names: set[str] | None = None

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that very name."""
        if self._names is None:
            self._names = set(self._rows.names)
        return name in self._names

    def of(self, name: str) -> tuple[int, ...] | None:
        if self._index is None:
            self._index = {
                self._rows.names[at]: self._rows.kinds[at].shape
                for members, pattern in zip(self._groups, self._patterns, strict=True)
                if pattern.endswith(("scales", "zeros", "scale"))
                for at in members
            }
        return self._index.get(name)


@lru_cache(maxsize=1)
def _buffers() -> Any:
    table = json.loads((Path(__file__).parent / "data" / "buffers.json").read_text("utf-8"))
    return {
        "leaf": frozenset(table["leaf"]),
        "suffix": tuple(table["suffix"]),
        "with_module": frozenset(table["with_module"]),
        "unless": table["unless"],
        "only_in": table["only_in"],
        "frozen_norms": frozenset(table["frozen_norms"]),
    }


def is_unknown_code(leaf: str, row: Row, method: str | None, *, layer: bool) -> bool:
    """Whether an integer tensor must be a packed weight of a kind that nobody here can count.

    So is one that no rule knows in a model that is quantized, any matrix of integers that is called `weight`, and one
    of bytes in a `layer`, which holds no modules: a table of places needs wider numbers.
    """
    known = _buffers()
    if "_packed_params" in row.name:  # torch's own quantized modules
        return row.dtype.kind == "int"
    if row.dtype.kind != "int" or leaf in known["leaf"] or leaf.endswith(known["suffix"]):
        return False
    matrix = row.dtype.name in ("I8", "U8") and len(row.shape) >= 2
    if layer and matrix and "mask" not in leaf and not _is_mask(row.shape):
        return True
    return (method is not None and numel(row.shape) > 1) or (leaf == "weight" and len(row.shape) >= 2)


def _is_mask(shape: tuple[int, ...]) -> bool:
    """GPT-2's causal mask: a bias proper is no square."""
    return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] > 1


def is_buffer(module: str, leaf: str, row: Row, siblings: frozenset[str], model_type: str | None) -> bool:
    """Whether a tensor is state that is stored but not learned."""
    known = _buffers()
    if row.dtype.kind in ("int", "bool"):
        return True  # only floating point is trained; codes of quantized weights were told apart before
    if leaf in known["leaf"] or leaf.endswith(known["suffix"]):
        return model_type not in known["unless"].get(leaf, ())
    if module.rpartition(".")[2] in _SHARED_BASES:
        return True  # PEFT's, by the adapter's name
    pair = f"{module.rpartition('.')[2]}.{leaf}"
    if pair in known["with_module"] or model_type in known["only_in"].get(pair, ()):
        return True
    if leaf == "bias" and _is_mask(row.shape):
        return True
    if module.rpartition(".")[0].endswith("parametrizations") or ".parametrizations." in f".{module}.":
        return leaf in ("_u", "_v", "base")  # of torch's spectral_norm and orthogonal
    if leaf.endswith("_mask") and f"{leaf.removesuffix('_mask')}_orig" in siblings:
        return True  # of torch's pruning
    if leaf == "weight_v" and "weight_u" in siblings:
        return True  # spectral norm's; weight norm has a weight_v too, a parameter, beside weight_g
    # A frozen batch norm keeps its affine part as buffers, and no step counter. Checkpoints older than the counter look
    # the same, so that only models known to freeze theirs are taken at their word.
    frozen = "running_mean" in siblings and "num_batches_tracked" not in siblings and len(row.shape) == 1
    return frozen and leaf in ("weight", "bias") and model_type in known["frozen_norms"]

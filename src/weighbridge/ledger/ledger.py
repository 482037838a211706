"""The ledger: the full record of a model's tensors, counted without reading their data."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from weighbridge.ledger.architecture import Architecture
from weighbridge.ledger.errors import Unknown
from weighbridge.ledger.families import BUFFER, EXTRA, PARAMETER, TIED_COPIES, Family, judge
from weighbridge.ledger.signature import Signature
from weighbridge.ledger.source import Source
from weighbridge.ledger.stated import NOTHING, Stated
from weighbridge.ledger.tensor import ROLES, Row, Rows, Tensor, numel
from weighbridge.ledger.ties import declared, resolve
from weighbridge.ledger.units import Bytes, Count

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|blk|resblocks|stages?)\.([0-9]{1,9})\.")
_NUMBER = re.compile("[0-9]{1,9}")
_EXPERT = re.compile(r"(?:experts?|blk\.[0-9]+\.ffn_(?:gate|up|down))\.([0-9]{1,9})\.")
# What looks up a token's own vector; position, type and per-layer tables are embeddings too, but not this one.
_INPUT_EMBEDDING = re.compile(
    r"(?:^|[._])(?:embed_tokens|wte|word_embeddings?|tok_embeddings|token_embeddings?|tokens_embed|embed_in|shared)"
    r"(?:\.[0-9]+)?\.weight$|^token_embd\.weight$|(?:^|\.)(?:embeddings?|emb|embed|w)\.weight$"
)


class Ledger:
    """A model's tensors with their meaning.

    Identities that hold for every ledger: `total + buffers + sum(extras) == stored + packed`, where `stored` counts the
    elements as the files list them and `packed` what unpacking several codes out of one stored element adds; and
    `sum(by_role()) == sum(by_dtype()) == weights + biases == total`.
    """

    def __init__(
        self,
        *,
        source: Source,
        format: str,
        rows: Iterable[Row],
        architecture: Architecture | None = None,
        metadata: Mapping[str, object] | None = None,
        aliases: Mapping[str, str] | None = None,
        adapter_files: Iterable[int] = (),
        signature: Signature | None = None,
        notes: Sequence[str] = (),
        stated: Stated = NOTHING,
    ) -> None:
        """`aliases` are ties that the file itself shows; `adapter_files` index the files that hold an adapter;
        `stated` is what the format says of tensors by itself.
        """
        self.source = source
        self.format = format
        self.rows = Rows.of(rows)
        self.architecture = architecture or Architecture()
        self.metadata = metadata or {}
        self.notes = tuple(notes)
        self.signature = signature or Signature(base_model=source.location)
        self.adapter_files = frozenset(adapter_files)
        self.stated = stated
        self._aliases = aliases or {}

    @property
    def base(self) -> "Ledger | None":
        """The model under an adapter; None where there is no adapter, or its base is not at hand."""
        rows = [row for row in self.rows if row.file not in self.adapter_files]
        if not self.adapter_files or not rows:
            return None
        names = {row.name for row in rows}
        return Ledger(
            source=self.source,
            format=self.format,
            rows=rows,
            architecture=self.architecture,
            metadata=self.metadata,
            aliases={copy: original for copy, original in self._aliases.items() if copy in names},
            signature=replace(self.signature, adapter=None),
            stated=self.stated,
        )

    def renamed(self, names: Mapping[str, str]) -> "Ledger":
        """The same tensors, some of them under other names."""
        return Ledger(
            source=self.source,
            format=self.format,
            rows=Rows(
                names=[names.get(name, name) for name in self.rows.names],
                kinds=self.rows.kinds,
                files=self.rows.files,
                offsets=self.rows.offsets,
            ),
            architecture=self.architecture,
            metadata=self.metadata,
            aliases={names.get(copy, copy): names.get(one, one) for copy, one in self._aliases.items()},
            adapter_files=self.adapter_files,
            signature=self.signature,
            notes=self.notes,
            stated=self.stated.renamed(names),
        )

    def __len__(self) -> int:
        """Tensors stored."""
        return len(self.rows)

    @cached_property
    def families(self) -> list[Family]:
        """Tensors grouped by name pattern, dtype and shape, each with its verdict.

        Raises:
            Unknown: packed weights whose number of elements cannot be told.

        """
        families = judge(
            self.rows,
            architecture=self.architecture,
            metadata=self.metadata,
            adapter_files=self.adapter_files,
            stated=self.stated,
        )
        # A config alone states its ties: what names suggest is for files, which do not.
        suggested = {} if self.stated.complete else declared(families, self.architecture)
        if suggested and (apart := self.stated.apart) is not None:
            suggested = {copy: original for copy, original in suggested.items() if not apart(copy)}
        self._ties = resolve(self._aliases, suggested)
        if not self._ties:
            return families
        return [part for family in families for part in self._without_copies(family)]

    def _without_copies(self, family: Family) -> Iterable[Family]:
        names = self.rows.names
        copies = [at for at in family.index if names[at] in self._ties]
        if copies and family.kind == PARAMETER:
            yield replace(family, kind=EXTRA, extra=TIED_COPIES, index=copies)
            kept = [at for at in family.index if names[at] not in self._ties]
            if kept:
                yield replace(family, index=kept)
        else:
            yield family

    @property
    def ties(self) -> dict[str, str]:
        """{copy: original} of tensors that are stored, or named, more than once."""
        self.families  # noqa: B018 - judged together
        return self._ties

    @cached_property
    def parameters(self) -> list[Family]:
        """The families that are parameters."""
        return [family for family in self.families if family.kind == PARAMETER]

    @cached_property
    def total(self) -> Count:
        """All parameters; tied ones once, packed ones unpacked."""
        return Count(sum(family.total for family in self.parameters))

    @cached_property
    def active(self) -> Count:
        """Parameters that one token uses: total − routed · (experts − experts per token) / experts.

        Raises:
            Unknown: a mixture of experts whose configuration does not say how many a token uses.

        """
        routed = sum(family.total for family in self.parameters if family.role == "expert")
        if not routed:
            if self._should_have_experts():
                raise Unknown("the configuration speaks of experts, and no tensor is known to be one")
            return self.total
        idle = self._idle()
        if idle is not None:
            return Count(self.total - idle)
        experts, used = self.experts, self.architecture.experts_per_token
        if not used:
            raise Unknown("how many experts a token uses is not stated", fix="put config.json beside the weights")
        if used > experts:
            raise Unknown(f"the configuration uses {used} experts of {experts}")
        idle, rest = divmod(routed * (experts - used), experts)
        if rest:
            raise Unknown(f"{routed:,} expert parameters do not divide among {experts} experts")
        return Count(self.total - idle)

    def _idle(self) -> int | None:
        """Expert parameters that a token leaves out, layer by layer: layers may differ in experts and in how many are
        used. None where the architecture does not say so of each layer that has experts.
        """
        routers = {f"{router.module}.": router for router in self.architecture.routers}
        if not routers:
            return None
        routed = dict.fromkeys(routers, 0)
        forms = sorted({_NUMBER.sub(r"[0-9]+", re.escape(prefix)) for prefix in routers}, key=len)
        layer_of = re.compile("|".join(forms)).match
        for family in self.parameters:
            if family.role != "expert":
                continue
            layers = Counter(found[0] for name in family.names if (found := layer_of(name)))
            if layers.total() != len(family.names) or not layers.keys() <= routers.keys():
                return None
            for layer, count in layers.items():
                routed[layer] += count * family.elements
        idle = 0
        for layer, router in routers.items():
            if not router.experts or not router.top_k or router.top_k > router.experts:
                return None
            part, rest = divmod(routed[layer] * (router.experts - router.top_k), router.experts)
            if rest:
                return None
            idle += part
        return idle

    @cached_property
    def active_excluding_input_embedding(self) -> Count:
        """Active parameters without the input embedding, as model cards of gpt-oss and others count them."""
        return Count(self.active - self.input_embedding)

    def _should_have_experts(self) -> bool:
        """A router, or a tensor with a place for each expert, in a model whose configuration has several."""
        experts = self.architecture.experts or 0
        stacked = any(len(f.shape) >= 3 and f.shape[0] == experts and f.role == "ffn" for f in self.parameters)
        return experts > 1 and (stacked or any(family.role == "router" for family in self.parameters))

    @property
    def input_embedding(self) -> Count:
        """Parameters of the table that looks up a token's vector."""
        return Count(
            sum(
                family.total
                for family in self.parameters
                if family.role == "embedding" and len(family.shape) == 2 and _INPUT_EMBEDDING.search(family.first.name)
            )
        )

    @cached_property
    def experts(self) -> int:
        """Routed experts of a layer: as configured when the names agree, else as named."""
        family = max((f for f in self.parameters if f.role == "expert"), key=lambda f: f.total)
        first = family.first.name
        number = _EXPERT.search(first)
        stored = family.shape[0] if len(family.shape) >= 3 else None
        if number:  # experts one by one: those of one layer are counted
            layer, rest = first[: number.start(1)], first[number.end(1) :]
            names = family.names
            stored = sum(name.startswith(layer) and name.endswith(rest) for name in names)
            mark = next((mark for mark in ("experts.", "expert.") if layer.endswith(mark)), None)
            if mark and len(set(Counter([name.partition(mark)[0] for name in names]).values())) > 1:
                raise Unknown("layers have different numbers of experts")
        configured = self.architecture.experts
        if configured is None:
            if stored is None:
                raise Unknown("how many experts a layer has is not stated", fix="put config.json beside the weights")
            return stored
        if stored is not None and stored != configured and (number or stored % configured):
            raise Unknown(f"the configuration says {configured} experts, the files hold {stored}")
        return configured

    @cached_property
    def trainable(self) -> Count:
        """Parameters that training updates: an adapter's own where there is one, else all stored as plain floats and
        not stated to be frozen.
        """
        return Count(sum(family.total for family in self.parameters if family.trainable))

    @cached_property
    def biases(self) -> Count:
        """Parameters that are biases."""
        return Count(sum(family.total for family in self.parameters if family.bias))

    @property
    def weights(self) -> Count:
        """Parameters that are not biases."""
        return Count(self.total - self.biases)

    @cached_property
    def buffers(self) -> Count:
        """Elements of stored state that is not learned."""
        return Count(sum(family.total for family in self.families if family.kind == BUFFER))

    @cached_property
    def extras(self) -> dict[str, Count]:
        """What else is stored, by name: tied copies, MTP layers, quantization scales and so on."""
        found: dict[str, int] = {}
        for family in self.families:
            if family.kind == EXTRA and family.extra is not None:
                found[family.extra] = found.get(family.extra, 0) + family.total
        return {name: Count(found[name]) for name in sorted(found)}

    @cached_property
    def stored(self) -> Count:
        """Elements as the files list them."""
        return Count(sum(numel(family.shape) * family.count for family in self.families))

    @property
    def packed(self) -> Count:
        """Elements that unpacking adds to the stored ones."""
        return Count(self.total + self.buffers + sum(self.extras.values()) - self.stored)

    @cached_property
    def nbytes(self) -> Bytes:
        """Bytes of all tensors as stored, headers and padding apart."""
        return Bytes(sum(family.nbytes for family in self.families))

    def by_role(self) -> dict[str, Count]:
        """Parameters by role, in the order of `ROLES`."""
        found = dict.fromkeys(ROLES, 0)
        for family in self.parameters:
            found[family.role] += family.total
        return {role: Count(count) for role, count in found.items() if count}

    def by_dtype(self) -> dict[str, Count]:
        """Parameters by the dtype they are stored in, most first."""
        found: dict[str, int] = {}
        for family in self.parameters:
            found[family.dtype.name] = found.get(family.dtype.name, 0) + family.total
        return {name: Count(found[name]) for name in sorted(found, key=lambda name: -found[name])}

    def by_layer(self) -> dict[str, dict[str, Count]]:
        """Parameters by layer and role. Keys name the stack and its number: `model.layers.0`; "" is outside any."""
        found: dict[str, dict[str, int]] = {}
        for family in self.parameters:
            for name in family.names:
                place = _LAYER.search(name)
                key = name[: place.end(1)] if place else ""
                layer = found.setdefault(key, {})
                layer[family.role] = layer.get(family.role, 0) + family.elements
        return {key: {role: Count(n) for role, n in roles.items()} for key, roles in sorted(found.items(), key=_order)}

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every stored tensor with its meaning, in the order of the files."""
        made = {}
        for family in self.families:
            for row in family.rows:
                layer, expert = _LAYER.search(row.name), _EXPERT.search(row.name)
                made[row.file, row.offset, row.name] = Tensor(
                    name=row.name,
                    dtype=row.dtype,
                    shape=row.shape,
                    role=family.role,
                    kind=family.kind,
                    extra=family.extra,
                    elements=family.elements,
                    layer=int(layer[1]) if layer else None,
                    expert=int(expert[1]) if expert and family.role == "expert" else None,
                    bias=family.bias,
                    trainable=family.trainable,
                    tied_to=self._ties.get(row.name),
                    file=row.file,
                    offset=row.offset,
                    nbytes=row.nbytes,
                )
        return tuple(made[key] for key in sorted(made))


def _order(item: tuple[str, object]) -> list[tuple[int, str]]:
    """Natural order: layer 10 after layer 9."""
    return [(int(part), "") if _NUMBER.fullmatch(part) else (-1, part) for part in item[0].split(".")]

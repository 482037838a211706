"""The names that PyTorch checkpoints use: which may occur, and which tensors and storages they build.

A class that is only instantiated (a pickled `__main__.Net`) is a record whoever wrote it: its state is data. A name
that reaches the system is refused wherever it stands. What calls mean is in `torch_calls`.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from weighbridge.formats.inert import SAFER, Global, Meter, Record
from weighbridge.ledger import DTYPES
from weighbridge.ledger.errors import Refused

_STORAGE_MODULES = frozenset(("torch", "torch.storage", "torch.cuda"))
_MOST_ELEMENTS = 1 << 60
_UNLISTED_WIDTHS = {"bits16": 2}  # of the dtypes that no ledger type stands for, the one that is not a byte wide


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The tables of `data/pickle_names.json`."""

    dtypes: dict[str, str]  # torch's name -> the ledger's; a float4 tensor lists its bytes, two elements in each
    storages: dict[str, str]  # class -> torch's name of the dtype
    never: frozenset[str]
    harmless: dict[str, frozenset[str]]
    records: dict[str, frozenset[str]]
    libraries: frozenset[str]
    model_keys: dict[str, int]  # key -> rank
    settings_keys: frozenset[str]


@cache
def names() -> Names:
    """The tables, read when first needed."""
    table = json.loads((Path(__file__).parent / "data" / "pickle_names.json").read_bytes())
    return Names(
        dtypes=table["dtypes"],
        storages=table["storages"],
        never=frozenset(table["never"]),
        harmless={module: frozenset(listed) for module, listed in table["harmless"].items()},
        records={module: frozenset(listed) for module, listed in table["records"].items()},
        libraries=frozenset(table["libraries"]),
        model_keys={key: rank for rank, key in enumerate(table["model_keys"])},
        settings_keys=frozenset(table["settings_keys"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A run of bytes in the file, by key: `numel` elements of torch dtype `dtype`.

    `view` is (first element, elements) of a part of it, which only the legacy format knows.
    """

    key: str
    dtype: str
    numel: int
    view: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredTensor:
    """A tensor as the pickle rebuilds it. Offset and strides count elements; `problem` says why it has no plain bytes.

    `inner` holds the attributes of a tensor subclass that keeps its data in other tensors. `frozen`: a parameter that
    training leaves alone.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None
    problem: str = ""
    inner: Record | None = None
    frozen: bool = False


def width(dtype: str) -> int:
    """Bytes of one element of a torch dtype, as torch stores it; one float4_e2m1fn_x2 is a pair."""
    listed = names().dtypes.get(dtype)
    return DTYPES[listed].block_bytes if listed else _UNLISTED_WIDTHS.get(dtype, 1)


def storage(persistent_id: object) -> object:
    """What stands for a persistent id: ("storage", class, key, device, elements), or a module's class with its source.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(persistent_id, tuple) or len(persistent_id) < 4 or not isinstance(persistent_id[1], Global):
        raise ValueError("a persistent id that is no storage")
    word, kind, key, _, *rest = persistent_id
    if word == "module":
        return kind
    dtype = names().storages.get(kind.name) if kind.module in _STORAGE_MODULES else None
    numel = rest[0] if rest else None
    if word != "storage" or dtype is None or not isinstance(key, str | int):
        raise ValueError(f"a storage of {kind}")
    if not isinstance(numel, int) or not 0 <= numel < _MOST_ELEMENTS:
        raise ValueError("a storage of no sound size")
    return Storage(key=str(key), dtype=dtype, numel=numel, view=_view(tuple(rest[1:]), numel))


def _view(rest: tuple[object, ...], numel: int) -> tuple[int, int] | None:
    match rest:
        case () | (None,):
            return None
        case ((_, int(first), int(count)),) if 0 <= first <= first + count <= numel:
            return first, count
    raise ValueError("a view past its storage")


def admit(name: Global, meter: Meter) -> None:
    """Lets a name pass that may occur in a checkpoint, called or not.

    Raises:
        Refused: it may not: it belongs to a module that runs code or reaches the system or the network.
    """
    tables = names()
    top = name.module.partition(".")[0]
    # Protocol 4 follows dots in the name, so `torch.serialization` has an `os.system` too.
    reached = name.name.split(".")[:-1]
    if top in tables.never and name.name not in tables.harmless.get(name.module, ()):
        raise refused("names", name, meter)
    if not tables.never.isdisjoint(reached):
        raise refused("names", name, meter)


_SAFER_ESTIMATORS = {
    "sklearn": "save it with skops.io.dump",
    "xgboost": "save it with save_model as .json or .ubj",
    "lightgbm": "save it as text with save_model (of an estimator: booster_.save_model)",
}


def safer(module: str) -> str:
    """How to save what a class of that module makes, without a pickle."""
    # An estimator is no tensor file: its own libraries write formats that need no pickle.
    return _SAFER_ESTIMATORS.get(module.partition(".")[0], SAFER)


def refused(verb: str, name: Global, meter: Meter) -> Refused:
    """The error for a name that the pickle `verb`s."""
    told = f"the pickle {verb} {str(name)[:200]}, which no tensor file needs; nothing was executed"
    return Refused(f"{meter.name}: {told}", fix=safer(name.module))

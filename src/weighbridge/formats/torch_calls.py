"""What the calls in PyTorch pickles amount to, told without making them.

Three kinds: calls that are understood (tensors, containers, scalars), calls and classes of the libraries that write
checkpoints, kept as records, and every other, refused.

Source: PyTorch 2.13 `torch._utils`, `torch._tensor`, `torch._weights_only_unpickler`; older names from releases 0.4 on.
"""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from weighbridge.formats.inert import Global, Meter, Record
from weighbridge.formats.torch_names import Storage, StoredTensor, names, refused

# Takes the arguments and the meter; raises ValueError or IndexError for arguments of another form.
Understood = Callable[[tuple[object, ...], Meter], object]

_MOST_DIMENSIONS = 64  # torch's own limit
_OPAQUE = Global("numpy", "generic")


def call(function: Global, arguments: tuple[object, ...], meter: Meter) -> object:
    """What stands for the outcome of `function(*arguments)`.

    Raises:
        Refused: no checkpoint needs that call.
        ValueError: the arguments are not those that it takes; IndexError: they are too few.
    """
    understood = _CALLS.get((function.module, function.name))
    if understood is not None:
        return understood(arguments, meter)
    tables = names()
    if function.name in tables.records.get(function.module, ()):
        return Record(function, arguments)
    # Functions of these libraries (torch.hub.load) are lower-case, their classes are not.
    classes = all(part[:1].isupper() for part in function.name.split("."))
    if classes and function.module.partition(".")[0] in tables.libraries:
        return Record(function, arguments)
    raise refused("calls", function, meter)


# Tensors


def _strided(
    arguments: tuple[object, ...], meter: Meter, *, dtype: str | None = None, metadata: object = None
) -> StoredTensor:
    meter.spend(192)
    held, offset, size, stride = arguments[:4]
    shape, strides = _sizes(size), _sizes(stride)
    if type(offset) is not int or offset < 0 or len(shape) != len(strides):
        raise ValueError("a tensor without sound offset and strides")
    if type(held) is not Storage:
        problem = "keeps its data in a pickle within the pickle, as plain pickling does and torch.save does not"
        return StoredTensor(dtype=dtype or "unknown", shape=shape, problem=problem)
    problem = "is a lazy conjugate or negative, whose bytes are not its values" if metadata else ""
    dtype = dtype or held.dtype
    return StoredTensor(dtype=dtype, shape=shape, strides=strides, offset=offset, storage=held, problem=problem)


def _sizes(value: object) -> tuple[int, ...]:
    if type(value) is tuple and len(value) <= _MOST_DIMENSIONS and all(type(n) is int and n >= 0 for n in value):
        return value
    raise ValueError("a shape or stride that is none")


def _dtype(value: object) -> str:
    if type(value) is Global and value.module == "torch":
        return value.name
    raise ValueError("a dtype that is none")


def _class(value: object) -> Global:
    if type(value) is Global:
        return value
    raise ValueError("a class that is none")


def _tensor(arguments: tuple[object, ...], meter: Meter) -> object:
    return _strided(arguments, meter)


def _tensor_v2(arguments: tuple[object, ...], meter: Meter) -> object:
    return _strided(arguments, meter, metadata=arguments[6] if len(arguments) > 6 else None)


def _tensor_v3(arguments: tuple[object, ...], meter: Meter) -> object:
    metadata = arguments[7] if len(arguments) > 7 else None
    return _strided(arguments, meter, dtype=_dtype(arguments[6]), metadata=metadata)


def _problem(told: str) -> Understood:
    return lambda _arguments, _meter: StoredTensor(dtype="unknown", shape=(), problem=told)


def _elsewhere(arguments: tuple[object, ...], meter: Meter) -> object:
    if type(arguments[0]) is StoredTensor:
        return arguments[0]
    return _problem("keeps its data in a numpy array within the pickle")(arguments, meter)


def _meta(arguments: tuple[object, ...], _: Meter) -> object:
    return StoredTensor(
        dtype=_dtype(arguments[0]), shape=_sizes(arguments[1]), problem="is a meta tensor, without data"
    )


def _wrapper(arguments: tuple[object, ...], _: Meter) -> object:
    cls, dtype, size = arguments[:3]
    problem = f"is a {_class(cls)}, whose layout is not known"
    return StoredTensor(dtype=_dtype(dtype), shape=_sizes(size), problem=problem)


def _subclass(arguments: tuple[object, ...], meter: Meter) -> object:
    """`_rebuild_from_type_v2(function, class, arguments, state)`: a tensor made a subclass, with attributes."""
    function, cls, inner = arguments[:3]
    if type(function) is not Global or type(inner) is not tuple:
        raise ValueError("a tensor subclass without its tensor")
    meter.spend(160)
    made = call(function, inner, meter)
    if not isinstance(made, StoredTensor):
        raise ValueError("a tensor subclass that is no tensor")
    if _CALLS.get((function.module, function.name)) is not _wrapper:
        return made
    record = Record(_class(cls))
    record.state = arguments[3] if len(arguments) > 3 else None
    return replace(made, inner=record)


# Containers and scalars


def _first(arguments: tuple[object, ...], _: Meter) -> object:
    return arguments[0]


def _parameter(arguments: tuple[object, ...], _: Meter) -> object:
    """(tensor, requires_grad, ...)."""
    tensor = arguments[0]
    if isinstance(tensor, StoredTensor) and arguments[1:2] == (False,):
        return replace(tensor, frozen=True)
    return tensor


def _mapping(arguments: tuple[object, ...], meter: Meter) -> object:
    match arguments:
        case ():
            return {}
        case (dict() as given,):
            return given
        case (list() as pairs,):
            # Python 2 wrote an OrderedDict as a list of [key, value].
            meter.spend(232 + 128 * len(pairs))
            if all(type(pair) in (list, tuple) and len(pair) == 2 and type(pair[0]) is str for pair in pairs):
                return dict(pairs)
    raise ValueError("a dictionary that is none")


def _default_mapping(arguments: tuple[object, ...], meter: Meter) -> object:
    return _mapping(arguments[1:], meter)


def _collection(arguments: tuple[object, ...], _: Meter) -> object:
    return arguments[0] if arguments else []


def _bytes(arguments: tuple[object, ...], meter: Meter) -> object:
    """Bytes under protocol 2: a text whose letters are the bytes, to be encoded as Latin-1."""
    given = arguments[0] if arguments else b""
    if not isinstance(given, str):
        return given
    meter.spend(40 + len(given))
    return given.encode("latin-1")


def _device(arguments: tuple[object, ...], _: Meter) -> object:
    return ":".join(str(part)[:40] for part in arguments[:2] if isinstance(part, str | int))


def _path(kind: type[PurePosixPath] | type[PureWindowsPath]) -> Understood:
    def path(arguments: tuple[object, ...], meter: Meter) -> object:
        parts = [part for part in arguments if isinstance(part, str)]
        meter.spend(4 * sum(map(len, parts)))
        return str(kind(*parts))

    return path


_SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b"}
_SCALARS |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?"}


def _numpy_scalar(arguments: tuple[object, ...], _: Meter) -> object:
    match arguments:
        case (Record(arguments=(str(kind), *_), state=state), bytes(raw)) if kind in _SCALARS:
            order = ">" if isinstance(state, tuple) and state[1:2] == (">",) else "<"
            return struct.unpack(order + _SCALARS[kind], raw)[0]
    return Record(_OPAQUE, arguments)


def _reconstructed(arguments: tuple[object, ...], _: Meter) -> object:
    """`copyreg._reconstructor(cls, base, state)`: an instance under protocols 0 and 1."""
    made = Record(_class(arguments[0]))
    if len(arguments) > 2 and isinstance(arguments[2], dict | list):
        made.items = arguments[2]
    return made


def _instance(arguments: tuple[object, ...], _: Meter) -> object:
    return Record(_class(arguments[0]), arguments[1:])


def _generic(arguments: tuple[object, ...], meter: Meter) -> object:
    """`typing.Dict[str, int]`, which configurations keep as their type."""
    if isinstance(arguments[0], Global) and arguments[0].module in ("typing", "builtins"):
        return arguments[0]
    raise refused("calls", Global("operator", "getitem"), meter)


def _paths() -> dict[str, Understood]:
    posix, windows = _path(PurePosixPath), _path(PureWindowsPath)
    paths = {"PosixPath": posix, "PurePosixPath": posix, "Path": posix, "PurePath": posix}
    return paths | {"WindowsPath": windows, "PureWindowsPath": windows}


_BY_MODULE: dict[str, dict[str, Understood]] = {
    "torch._utils": {
        "_rebuild_tensor": _tensor,
        "_rebuild_qtensor": _tensor,
        "_rebuild_tensor_v2": _tensor_v2,
        "_rebuild_tensor_v3": _tensor_v3,
        "_rebuild_parameter": _parameter,
        "_rebuild_parameter_with_state": _parameter,
        "_rebuild_sparse_tensor": _problem("is sparse: its elements are not stored one by one"),
        "_rebuild_sparse_csr_tensor": _problem("is sparse: its elements are not stored one by one"),
        "_rebuild_nested_tensor": _problem("is a nested tensor, whose parts differ in shape"),
        "_rebuild_meta_tensor_no_storage": _meta,
        "_rebuild_wrapper_subclass": _wrapper,
        "_rebuild_device_tensor_from_cpu_tensor": _elsewhere,
        "_rebuild_device_tensor_from_numpy": _elsewhere,
        "_rebuild_xla_tensor": _elsewhere,
    },
    "torch._tensor": {"_rebuild_from_type_v2": _subclass, "_rebuild_from_type": _subclass},
    "torch.tensor": {"_rebuild_from_type": _subclass},
    "torch.nn.parameter": {"Parameter": _first, "Buffer": _first},
    "torch": {"Size": _first, "device": _device},
    "torch.serialization": {"_get_layout": _first},
    "torch.jit._pickle": {
        "build_intlist": _first,
        "build_doublelist": _first,
        "build_boollist": _first,
        "build_tensorlist": _first,
        "restore_type_tag": _first,
    },
    "collections": {
        "OrderedDict": _mapping,
        "Counter": _mapping,
        "defaultdict": _default_mapping,
        "deque": _collection,
    },
    "builtins": {
        "set": _collection,
        "frozenset": _collection,
        "list": _collection,
        "tuple": _collection,
        "dict": _mapping,
        "bytes": _bytes,
        "bytearray": _bytes,
        "int": _first,
        "float": _first,
        "str": _first,
        "bool": _first,
    },
    "_codecs": {"encode": _bytes},
    "copyreg": {"_reconstructor": _reconstructed, "__newobj__": _instance},
    "numpy.core.multiarray": {"scalar": _numpy_scalar},
    "numpy._core.multiarray": {"scalar": _numpy_scalar},
    "operator": {"getitem": _generic},
    "_operator": {"getitem": _generic},
    "pathlib": _paths(),
    "pathlib._local": _paths(),
}
_CALLS = {(module, name): understood for module, listed in _BY_MODULE.items() for name, understood in listed.items()}

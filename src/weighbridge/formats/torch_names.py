"""The names that PyTorch checkpoints use, and what stands for each of them when nothing is executed.

Three kinds: names that may not occur at all, calls that are understood, and classes of the libraries that write
checkpoints, whose instances and enum members are kept as records. Every other call is refused. A class that is only
instantiated (a pickled `__main__.Net`) is a record whoever wrote it: its state is data.

Source: PyTorch 2.13 `torch._utils`, `torch._tensor`, `torch._weights_only_unpickler`, `torch.storage`; older names from
releases 0.4 to 2.12.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath

from weighbridge.formats.inert import SAFER, Global, Meter, Record
from weighbridge.ledger.errors import Refused

# torch's name of a dtype -> the ledger's. A float4 tensor lists its bytes; each holds two elements.
DTYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"},
    **{"float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ", "float4_e2m1fn_x2": "F4"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8"},
    **{"uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8"},
    **{"complex32": "C32", "complex64": "C64", "complex128": "C128", "bool": "BOOL"},
    **{"qint8": "I8", "quint8": "U8", "qint32": "I32"},
}
_STORAGES = {
    **{"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8", "_UntypedStorage": "uint8"},
    **{"ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64"},
    **{"QInt8Storage": "qint8", "QInt32Storage": "qint32", "QUInt8Storage": "quint8"},
    **{"QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4"},
}

_MOST_DIMENSIONS = 64  # torch's own limit


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

    `inner` holds the attributes of a tensor subclass that keeps its data in other tensors.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    offset: int = 0
    storage: Storage | None = None
    problem: str = ""
    inner: Record | None = None


def storage(persistent_id: object) -> object:
    """What stands for a persistent id: ("storage", class, key, device, elements), or a module's class with its source.

    Raises:
        ValueError: it is neither.
    """
    match persistent_id:
        case ("storage", Global(module="torch" | "torch.storage" | "torch.cuda", name=name), key, _, int(numel), *rest):
            if name not in _STORAGES or not isinstance(key, str | int) or not 0 <= numel < 1 << 60:
                raise ValueError(f"a storage of {name} with {numel} elements")
            return Storage(key=str(key), dtype=_STORAGES[name], numel=numel, view=_view(rest, numel))
        case ("module", Global() as module, *_):
            return module
    raise ValueError("a persistent id that is no storage")


def _view(rest: list[object], numel: int) -> tuple[int, int] | None:
    match rest:
        case [] | [None]:
            return None
        case [(_, int(first), int(count))] if 0 <= first <= first + count <= numel:
            return first, count
    raise ValueError("a view past its storage")


# Names that may not occur


_HARMLESS = {
    "builtins": set(
        "set frozenset list dict tuple int float str bytes bytearray bool complex object slice range type Ellipsis "
        "NotImplemented NoneType".split()
    ),
    "functools": {"partial"},
    "operator": {"getitem"},
    "_operator": {"getitem"},
    "types": {"SimpleNamespace", "GenericAlias", "NoneType"},
}
_NEVER = frozenset(
    "__builtin__ _ctypes _operator _pickle _posixsubprocess _socket _thread aiohttp asyncio bdb builtins cProfile cffi "
    "cloudpickle code codeop commands concurrent ctypes dill distutils doctest ensurepip fileinput ftplib functools gc "
    "glob http httplib idlelib imaplib imp importlib inspect io jsonpickle linecache marshal mmap msvcrt multiprocessing "
    "nt ntpath operator os pathos pdb pickle pip pkgutil platform poplib popen2 posix posixpath profile pty pydoc requests "
    "resource runpy setuptools shelve shutil signal site smtplib socket socketserver sqlite3 ssl subprocess sys tarfile "
    "telnetlib tempfile threading timeit trace types urllib urllib2 urllib3 venv webbrowser winreg xmlrpc zipfile "
    "zipimport".split()
)


def admit(name: Global, meter: Meter) -> None:
    """Lets a name pass that may occur in a checkpoint, called or not.

    Raises:
        Refused: it may not: it belongs to a module that runs code or reaches the system or the network.
    """
    top = name.module.partition(".")[0]
    # Protocol 4 follows dots in the name, so `torch.serialization` has an `os.system` too.
    reached = set(name.name.split(".")[:-1])
    if (top in _NEVER and name.name not in _HARMLESS.get(name.module, ())) or not reached.isdisjoint(_NEVER):
        raise _refused("names", name, meter)


def _refused(verb: str, name: Global, meter: Meter) -> Refused:
    return Refused(
        f"{meter.name}: the pickle {verb} {str(name)[:200]}, which no tensor file needs; nothing was executed", fix=SAFER
    )


# Calls that are understood. Each takes the arguments and the meter, and raises ValueError for arguments of another form.


def _sizes(value: object) -> tuple[int, ...]:
    if type(value) is tuple and len(value) <= _MOST_DIMENSIONS and all(type(n) is int and n >= 0 for n in value):
        return value
    raise ValueError("a shape or stride that is none")


def _strided(arguments: tuple[object, ...], *, dtype: str | None = None, metadata: object = None) -> StoredTensor:
    held, offset, size, stride = arguments[:4]
    shape, strides = _sizes(size), _sizes(stride)
    if type(offset) is not int or offset < 0 or len(shape) != len(strides):
        raise ValueError("a tensor without sound offset and strides")
    if type(held) is not Storage:
        problem = "keeps its data in a pickle within the pickle, which plain pickling does"
        return StoredTensor(dtype=dtype or "unknown", shape=shape, problem=f"{problem}; torch.save would not")
    problem = "is a lazy conjugate or negative, whose bytes are not its values" if metadata else ""
    return StoredTensor(
        dtype=dtype or held.dtype, shape=shape, strides=strides, offset=offset, storage=held, problem=problem
    )


def _tensor_v2(arguments: tuple[object, ...], meter: Meter) -> object:
    return _strided(arguments, metadata=arguments[6] if len(arguments) > 6 else None)


def _tensor_v3(arguments: tuple[object, ...], meter: Meter) -> object:
    metadata = arguments[7] if len(arguments) > 7 else None
    return _strided(arguments, dtype=_dtype(arguments[6]), metadata=metadata)


def _dtype(value: object) -> str:
    if type(value) is Global and value.module == "torch":
        return value.name
    raise ValueError("a dtype that is none")


def _sparse(arguments: tuple[object, ...], meter: Meter) -> object:
    return StoredTensor(dtype="unknown", shape=(), problem="is sparse: its elements are not stored one by one")


def _nested(arguments: tuple[object, ...], meter: Meter) -> object:
    return StoredTensor(dtype="unknown", shape=(), problem="is a nested tensor, whose parts differ in shape")


def _elsewhere(arguments: tuple[object, ...], meter: Meter) -> object:
    if type(arguments[0]) is StoredTensor:
        return arguments[0]
    return StoredTensor(dtype="unknown", shape=(), problem="keeps its data in a numpy array within the pickle")


def _meta(arguments: tuple[object, ...], meter: Meter) -> object:
    return StoredTensor(dtype=_dtype(arguments[0]), shape=_sizes(arguments[1]), problem="is a meta tensor, without data")


def _wrapper(arguments: tuple[object, ...], meter: Meter) -> object:
    cls, dtype, size = arguments[:3]
    problem = f"is a {_class(cls)}, whose layout is not known"
    return StoredTensor(dtype=_dtype(dtype), shape=_sizes(size), problem=problem)


def _subclass(arguments: tuple[object, ...], meter: Meter) -> object:
    function, cls, inner = arguments[:3]
    if type(function) is not Global or type(inner) is not tuple:
        raise ValueError("a tensor subclass without its tensor")
    rebuild = CALLS.get((function.module, function.name))
    if rebuild is None:
        raise _refused("calls", function, meter)
    made = rebuild(inner, meter)
    if type(made) is StoredTensor and rebuild is _wrapper:
        record = Record(_class(cls))
        record.state = arguments[3] if len(arguments) > 3 else None
        return replace(made, inner=record)
    return made


def _class(value: object) -> Global:
    if type(value) is Global:
        return value
    raise ValueError("a class that is none")


def _first(arguments: tuple[object, ...], meter: Meter) -> object:
    return arguments[0]


def _mapping(arguments: tuple[object, ...], meter: Meter) -> object:
    match arguments:
        case ():
            return {}
        case (dict() as given,):
            return given
        case (list() as pairs,):
            # Python 2 wrote an OrderedDict as a list of [key, value].
            meter.spend(232 + 128 * len(pairs))
            return {key: value for key, value in pairs if type(key) in (str, int)}
    raise ValueError("a dictionary that is none")


def _default_mapping(arguments: tuple[object, ...], meter: Meter) -> object:
    return _mapping(arguments[1:], meter)


def _collection(arguments: tuple[object, ...], meter: Meter) -> object:
    return arguments[0] if arguments else []


def _bytes(arguments: tuple[object, ...], meter: Meter) -> object:
    """Bytes under protocol 2: a text whose letters are the bytes, to be encoded as Latin-1."""
    text = arguments[0] if arguments else b""
    if type(text) is not str:
        return text
    meter.spend(40 + len(text))
    return text.encode("latin-1" if arguments[1:2] != ("utf-8",) else "utf-8")


def _device(arguments: tuple[object, ...], meter: Meter) -> object:
    return ":".join(str(part)[:40] for part in arguments[:2] if type(part) in (str, int))


def _posix_path(arguments: tuple[object, ...], meter: Meter) -> object:
    return _path(PurePosixPath, arguments, meter)


def _windows_path(arguments: tuple[object, ...], meter: Meter) -> object:
    return _path(PureWindowsPath, arguments, meter)


def _path(
    kind: type[PurePosixPath] | type[PureWindowsPath], arguments: tuple[object, ...], meter: Meter
) -> str:
    parts = [part for part in arguments if type(part) is str]
    meter.spend(sum(map(len, parts)) * 4)
    return str(kind(*parts))


_SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b"}
_SCALARS |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?"}


def _numpy_scalar(arguments: tuple[object, ...], meter: Meter) -> object:
    match arguments:
        case (Record(arguments=(str(kind), *_), state=state), bytes(raw)) if kind in _SCALARS:
            order = ">" if type(state) is tuple and state[1:2] == (">",) else "<"
            return struct.unpack(order + _SCALARS[kind], raw)[0]
    return Record(_OPAQUE, arguments)


_OPAQUE = Global("numpy", "generic")


def _reconstructed(arguments: tuple[object, ...], meter: Meter) -> object:
    """`copyreg._reconstructor(cls, base, state)`: an instance under protocols 0 and 1."""
    made = Record(_class(arguments[0]))
    if len(arguments) > 2 and isinstance(arguments[2], dict | list):
        made.items = arguments[2]
    return made


def _instance(arguments: tuple[object, ...], meter: Meter) -> object:
    return Record(_class(arguments[0]), arguments[1:])


def _generic(arguments: tuple[object, ...], meter: Meter) -> object:
    """`typing.Dict[str, int]`, which configurations keep as their type."""
    if type(arguments[0]) is Global and arguments[0].module in ("typing", "builtins"):
        return arguments[0]
    raise _refused("calls", Global("operator", "getitem"), meter)


Understood = Callable[[tuple[object, ...], Meter], object]

_UTILS: dict[str, Understood] = {
    **dict.fromkeys(("_rebuild_tensor", "_rebuild_qtensor"), lambda arguments, meter: _strided(arguments)),
    "_rebuild_tensor_v2": _tensor_v2,
    "_rebuild_tensor_v3": _tensor_v3,
    **dict.fromkeys(("_rebuild_parameter", "_rebuild_parameter_with_state"), _first),
    **dict.fromkeys(("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor"), _sparse),
    "_rebuild_nested_tensor": _nested,
    "_rebuild_meta_tensor_no_storage": _meta,
    "_rebuild_wrapper_subclass": _wrapper,
    "_rebuild_device_tensor_from_cpu_tensor": _elsewhere,
    **dict.fromkeys(("_rebuild_device_tensor_from_numpy", "_rebuild_xla_tensor"), _elsewhere),
}
_BY_MODULE: dict[str, dict[str, Understood]] = {
    "torch._utils": _UTILS,
    "torch._tensor": {"_rebuild_from_type_v2": _subclass, "_rebuild_from_type": _subclass},
    "torch.tensor": {"_rebuild_from_type": _subclass},
    "torch.nn.parameter": {"Parameter": _first},
    "torch": {"Size": _first, "device": _device},
    "torch.serialization": {"_get_layout": _first},
    "torch.storage": {"_load_from_bytes": lambda arguments, meter: Record(_OPAQUE)},
    "torch.jit._pickle": dict.fromkeys(
        "build_intlist build_doublelist build_boollist build_tensorlist restore_type_tag build_tensor_from_id".split(),
        _first,
    ),
    "collections": {"OrderedDict": _mapping, "Counter": _mapping, "defaultdict": _default_mapping, "deque": _collection},
    "builtins": dict.fromkeys(("set", "frozenset", "list", "tuple"), _collection)
    | {"dict": _mapping, "bytearray": _bytes, "bytes": _bytes}
    | dict.fromkeys(("int", "float", "str", "bool"), _first)
    | dict.fromkeys(("complex", "slice", "range", "object"), lambda arguments, meter: Record(_OPAQUE, arguments)),
    "_codecs": {"encode": _bytes},
    "copyreg": {"_reconstructor": _reconstructed, "__newobj__": _instance},
    "numpy.core.multiarray": {"scalar": _numpy_scalar},
    "numpy._core.multiarray": {"scalar": _numpy_scalar},
    "operator": {"getitem": _generic},
    "_operator": {"getitem": _generic},
    **dict.fromkeys(
        ("pathlib", "pathlib._local"),
        dict.fromkeys(("PosixPath", "PurePosixPath", "Path", "PurePath"), _posix_path)
        | dict.fromkeys(("WindowsPath", "PureWindowsPath"), _windows_path),
    ),
}
CALLS: dict[tuple[str, str], Understood] = {
    (module, name): understood for module, names in _BY_MODULE.items() for name, understood in names.items()
}

# Calls whose outcome is kept as a record, unread.
_RECORDS = {
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), {"_reconstruct"}),
    **dict.fromkeys(("numpy.core.numeric", "numpy._core.numeric"), {"_frombuffer"}),
    "numpy": {"dtype", "ndarray"},
    "numpy.random._pickle": {"__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor"},
    "numpy.ma.core": {"_mareconstruct"},
    "functools": {"partial"},
    "types": {"SimpleNamespace", "GenericAlias"},
    "argparse": {"Namespace"},
    "datetime": {"datetime", "date", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "uuid": {"UUID"},
    "re": {"_compile"},
}
# Libraries that write checkpoints: their classes are enums, configurations and containers.
_LIBRARIES = frozenset(
    "torch torchvision torchaudio torchao transformers accelerate peft trl omegaconf numpy deepspeed megatron diffusers "
    "lightning pytorch_lightning lightning_fabric datasets tokenizers sentence_transformers bitsandbytes ml_dtypes".split()
)


def call(function: Global, arguments: tuple[object, ...], meter: Meter) -> object:
    """What stands for the outcome of `function(*arguments)`.

    Raises:
        Refused: no checkpoint needs that call.
        ValueError: the arguments are not those that it takes.
    """
    understood = CALLS.get((function.module, function.name))
    if understood is not None:
        return understood(arguments, meter)
    if function.name in _RECORDS.get(function.module, ()):
        return Record(function, arguments)
    # Functions of these libraries (torch.hub.load) are lower-case, classes are not.
    if function.module.partition(".")[0] in _LIBRARIES and all(part[:1].isupper() for part in function.name.split(".")):
        return Record(function, arguments)
    raise _refused("calls", function, meter)

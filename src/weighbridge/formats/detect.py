"""Which reader a file needs, by the bytes it begins with: names and endings may lie, and only protobufs need theirs."""

from collections.abc import Callable
from importlib import import_module

from weighbridge.formats import safetensors
from weighbridge.formats.candidates import TORCH, candidates
from weighbridge.formats.folder import Repository
from weighbridge.formats.header import Header
from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed, Refused

Beside = Callable[[str], File | None]
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# (where, what, module, function): the formats that say what they are.
_MAGIC = (
    (0, b"GGUF", "gguf", "read"),
    (0, b"\x93NUMPY", "npy", "read"),
    (0, b"tree\nversion=", "boosted", "read_lightgbm"),
    (4, b"TFL3", "tflite", "read"),
    (0, b"\x89HDF\r\n\x1a\n", "keras_file", "read"),
)
# The others, by their endings.
_ENDINGS = {
    "ubj": ("boosted", "read_xgboost"),
    "json": ("boosted", "read_xgboost"),
    "onnx": ("onnx", "read"),
    "mlmodel": ("coreml", "read"),
    "msgpack": ("flax_file", "read"),
}
_WITH_OTHERS = ("onnx", "mlmodel")  # formats whose data may lie in other files
# Formats that are folders, by a file in them.
_FOLDERS = {
    "saved_model.pb": ("saved_model", "tensorflow saved model"),
    "Manifest.json": ("coreml", "core ml package"),
}


_ORBAX = frozenset({"manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA"})


def folder_reader(repository: Repository) -> tuple[Callable[..., Header], str] | None:
    """(reader, format) of a folder that is one model as a whole; None for a folder of files that are.

    Raises:
        Refused: a folder of several such models.
    """
    for name, (module, format) in _FOLDERS.items():
        if name in repository.files:
            return _reader(module, "read_folder"), format
    if _ORBAX.isdisjoint(name.rpartition("/")[2] for name in repository.files) or candidates(repository.files):
        return None
    if import_module("weighbridge.formats.orbax").place_of(repository) is None:
        return None
    return _reader("orbax", "read_folder"), "orbax"


def read_header(file: File, index: int, beside: Beside | None = None) -> Header:
    """The header of a file, by its reader. `beside` opens files beside it, for formats that keep data apart.

    Raises:
        Malformed: no model file, or a broken one.
    """
    start = file.read(0, 16)
    if start[8:9] == b"{":  # first, since a header of 640 bytes begins like a pickle: 80 02
        return safetensors.read(file, index=index)
    for at, magic, module, function in _MAGIC:
        if start[at : at + len(magic)] == magic:
            return _reader(module, function)(file, index=index)
    suffix = file.name.rpartition(".")[2].lower()
    if suffix == "joblib":
        raise Refused(
            f"{file.name} is a pickle, which runs code when it is loaded",
            fix="save it with skops.io.dump, a booster of XGBoost or LightGBM with its own save_model",
        )
    if start[:2] == b"PK":
        return _zip(file, index, suffix)
    if start[:2] in _PICKLES:
        return _reader("torch_file", "read")(file, index=index)
    if suffix in _ENDINGS:
        module, function = _ENDINGS[suffix]
        more = {"beside": beside} if suffix in _WITH_OTHERS else {}
        return _reader(module, function)(file, index=index, **more)
    if start.startswith(b"version "):
        raise Malformed(f"{file.name} is a Git LFS pointer, not the file itself", fix="git lfs pull")
    if start.lower().startswith((b"<!doctype", b"<html")):
        raise Malformed(f"{file.name} is a web page, not a model", fix="download it again")
    boosted = _reader("boosted", "read_other")(file, index=index)
    if boosted is not None:
        return boosted
    if int.from_bytes(start[:8], "little") > safetensors.LARGEST_HEADER:
        raise Malformed(
            f"{file.name} is no model file", fix="docs/formats.md lists what is read, whatever it is called"
        )
    return safetensors.read(file, index=index)


def _reader(module: str, function: str) -> Callable[..., Header]:
    return getattr(import_module(f"weighbridge.formats.{module}"), function)


def _zip(file: File, index: int, suffix: str) -> Header:
    """PyTorch's, NumPy's, Keras's and skops's archives are told apart by their members."""
    if suffix not in TORCH:
        from weighbridge.formats.archive import Archive

        members = list(Archive(file))
        if "model.weights.h5" in members:
            return _reader("keras_file", "read_keras")(file, index=index)
        if "schema.json" in members:
            return _reader("skops", "read")(file, index=index)
        if members and all(member.endswith(".npy") for member in members):
            return _reader("npy", "read_npz")(file, index=index)
    return _reader("torch_file", "read")(file, index=index)

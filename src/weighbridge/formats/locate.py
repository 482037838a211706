"""From what a user types to the place where a model's files lie."""

import re
from pathlib import Path

from weighbridge.formats import naming
from weighbridge.formats.folder import LocalFolder, Repository
from weighbridge.formats.local import LocalFile
from weighbridge.ledger.errors import NotFound, Refused, Unreachable

HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")
_ENDINGS = (".safetensors", ".gguf", ".pt", ".pth", ".bin", ".ckpt", ".json", ".onnx", ".tflite", ".npz", ".skops")
_ENDINGS += (".keras", ".h5", ".ubj", ".mlmodel", ".mlpackage", ".msgpack")
_DEEP = (".mlpackage",)  # folders that are one model, nested


def locate(spec: str, file: str | None, *, offline: bool) -> tuple[Repository, str | None, str | None]:
    """Where a model's files lie, the label chosen among them, the file chosen among them.

    Raises:
        NotFound: nothing is called like that, or lies there.
        Refused: a choice where there is nothing to choose.
        Unreachable: the hub did not answer.
    """
    name, marked, selector = spec.partition("::")
    if not name or (marked and not selector):
        raise NotFound(f"no model is called {spec!r}", fix="give a path, a hub id (org/name) or ollama:NAME")
    if spec.startswith("ollama:"):
        from weighbridge.formats.ollama import find

        return find(spec), None, None
    path = Path(name).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):
        is_folder = exists = False
    if is_folder:
        base, version = naming.local_base(path)
        levels = 4 if path.suffix in _DEEP else 1
        return LocalFolder(path, location=spec, base=base, version=version, levels=levels), selector or None, file
    if exists:
        if selector or file:
            raise Refused(
                f"{name} is one file: there is nothing to choose", fix="leave the choice out, or name its folder"
            )
        base, version = naming.local_base(path)
        folder = LocalFolder(path.parent, location=spec, base=base, version=version, levels=0)
        if path.name not in folder.files:
            LocalFile(path)  # says why: not a regular file, or not readable
        return folder, None, path.name
    is_path = name.startswith((".", "/", "~")) or name.lower().endswith(_ENDINGS)
    if is_path or not HUB_ID.fullmatch(name.partition("@")[0]):
        fix = "give a path, a hub id (org/name) or ollama:NAME"
        if name.startswith(("http://", "https://")):
            fix = "give the id alone, org/name; HF_ENDPOINT names another hub"
        raise NotFound(f"no such file or folder: {name}", fix=fix)
    from weighbridge.formats.hub import resolve

    try:
        return resolve(spec, file=file, offline=offline), selector or None, file
    except Unreachable as error:
        raise Unreachable(f"no file or folder here is called {name}, and {error.what}", fix=error.fix) from None

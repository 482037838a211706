"""Models in the local store of Ollama: `ollama:NAME[:TAG]`.

Source: Ollama's own code (manifest.go, paths.go), as of 2026-11. `manifests-v2/HOST/NAMESPACE/NAME/TAG`, before
that `manifests/...`, is a JSON list of layers, or a list of such lists for several runners; a layer is a file
`blobs/sha256-DIGEST`, and the one of type `application/vnd.ollama.image.model` is a GGUF.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weighbridge.formats.local import LocalFile
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated, Unknown

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
# Where manifests lie, newest layout first, and what Ollama's own registry is called there.
_LAYOUTS = {"manifests-v2": "ollama.com", "manifests": _HOST}
_LIST = "application/vnd.ollama.manifest.list.v2+json"
_MOST_RUNNERS = 16
_PART = re.compile(r"[A-Za-z0-9_][\w.\-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_LAYER = "application/vnd.ollama.image."
_LARGEST = 4 << 20  # of a manifest or a config; real ones take kilobytes
_NEAR = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaModel:
    """A model of the store. `files` names its blobs for readers: `model.gguf`, and `mmproj-N.gguf` for projectors.

    `adapters` are LoRA files that Ollama applies when it loads the model; they are not among `files`.
    `metadata` is what Ollama says of the model: `model_family`, `model_type` ("8.0B"), `file_type` ("Q4_K_M").
    """

    location: str
    base: str
    version: str | None
    files: Mapping[str, int]
    paths: Mapping[str, Path]
    adapters: tuple[Path, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)

    def open(self, name: str, /) -> LocalFile:
        """The file of that name, one of `files`."""
        if name not in self.paths:
            raise NotFound(f"{self.location} has no {name}")
        return LocalFile(self.paths[name], name=name)


def find(spec: str, *, environ: Mapping[str, str] = os.environ) -> OllamaModel:
    """The model that `spec` names: `[ollama:][HOST/][NAMESPACE/]NAME[:TAG]`, as `ollama list` shows it.

    Raises:
        NotFound: no such model, or one of its layers is not there; names near it are listed.
        Malformed: a manifest that is none.
        Truncated: a layer shorter than the manifest says.
        Refused: a manifest that points outside the store.
        Unknown: a model that Ollama keeps tensor by tensor, not as a GGUF.

    """
    wanted = _parts(spec.removeprefix("ollama:"), spec)
    roots = stores(environ)
    for root in roots:
        path = _manifest(root, wanted)
        if path is not None:
            namespace, name, tag = path.parts[-3:]  # as the store spells them
            return _model(root, _for_gguf(root, _json(path, spec), spec), spec, namespace=namespace, name=name, tag=tag)
    asked, known = _short(wanted), sorted({name for root in roots for name in installed(root)})
    if not known:
        raise NotFound(f"no model {asked}: Ollama's store is empty or not there", fix=f"ollama pull {asked}")
    other_tags = [name for name in known if name.partition(":")[0] == asked.partition(":")[0]]
    near = other_tags or difflib.get_close_matches(asked, known, n=_NEAR, cutoff=0.4) or known
    raise NotFound(f"no model {asked} in Ollama's store", fix=f"it has {', '.join(near[:_NEAR])}")


def stores(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The folders where Ollama keeps models: OLLAMA_MODELS alone, or the user's own and the service's."""
    own = environ.get("OLLAMA_MODELS", "").strip("\"' ")
    if own:
        return [Path(own).expanduser()]
    services = ("/usr/share/ollama", "/var/lib/ollama")
    places = [Path("~/.ollama/models").expanduser(), *(Path(home, ".ollama/models") for home in services)]
    return [place for place in places if _is_folder(place)]


def installed(root: Path) -> Iterator[str]:
    """The names of the models in a store, as `ollama list` shows them."""
    for layout, own in _LAYOUTS.items():
        folder = root / layout
        for path in folder.glob("*/*/*/*"):
            if not path.name.startswith(".") and path.is_file():
                host, namespace, name, tag = path.relative_to(folder).parts
                yield _short((_HOST if host == own else host, namespace, name, tag))


def _parts(name: str, spec: str) -> tuple[str, str, str, str]:
    """(host, namespace, name, tag). A colon before the last slash is a host's port."""
    *before, last = name.split("/")
    model, _, tag = last.partition(":")
    host = before[0] if len(before) == 2 else _HOST
    parts = (host, before[-1] if before else _NAMESPACE, model, tag or _TAG)
    bare = re.sub(r":\d{1,5}$", "", host)
    if len(before) > 2 or not all(_PART.fullmatch(part) and ".." not in part for part in (bare, *parts[1:])):
        raise NotFound(f"not the name of an Ollama model: {spec}", fix="the form is ollama:NAME or ollama:NAME:TAG")
    return parts


def _short(parts: tuple[str, str, str, str]) -> str:
    host, namespace, name, tag = parts
    if host != _HOST:
        return f"{host}/{namespace}/{name}:{tag}"
    return f"{name}:{tag}" if namespace == _NAMESPACE else f"{namespace}/{name}:{tag}"


def _manifest(root: Path, parts: tuple[str, str, str, str]) -> Path | None:
    host, *rest = parts
    for layout, own in _LAYOUTS.items():
        path: Path | None = root / layout
        for part in (own if host in (_HOST, own) else host, *rest):
            path = path and _entry(path, part)
        if path and path.is_file():
            return path
    return None


def _entry(folder: Path, name: str) -> Path | None:
    """An entry of a folder. Two of Ollama's names never differ in case alone, what the user types may."""
    if (folder / name).exists():
        return folder / name
    try:
        return next((entry for entry in folder.iterdir() if entry.name.lower() == name.lower()), None)
    except OSError:
        return None


def _json(path: Path, name: str) -> dict[str, object]:
    raw = LocalFile(path, name=name).read(0, _LARGEST + 1)
    try:
        found = json.loads(raw) if len(raw) <= _LARGEST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Malformed(f"{name}: Ollama's record of it is damaged", fix="ollama pull it again")
    return found


def _layers(manifest: Mapping[str, object], kind: str) -> list[Mapping[str, object]]:
    listed = manifest.get("layers")
    layers = listed if isinstance(listed, list) else []
    return [layer for layer in layers if isinstance(layer, dict) and layer.get("mediaType") == _LAYER + kind]


def _for_gguf(root: Path, manifest: dict[str, object], spec: str) -> Mapping[str, object]:
    """Of a list for several runners, the one whose weights are a GGUF; any other manifest as it is."""
    if manifest.get("mediaType") != _LIST:
        return manifest
    children = manifest.get("manifests")
    found: list[Mapping[str, object]] = []
    for child in children[:_MOST_RUNNERS] if isinstance(children, list) else ():
        if isinstance(child, dict) and not child.get("layers") and child.get("digest"):
            child = _json(_blob(root, {"digest": child["digest"]}, spec)[0], spec)
        if isinstance(child, dict):
            found.append(child)
    return next((child for child in found if _layers(child, "model")), found[0] if found else {})


def _model(
    root: Path, manifest: Mapping[str, object], spec: str, *, namespace: str, name: str, tag: str
) -> OllamaModel:
    models = [_blob(root, layer, spec) for layer in _layers(manifest, "model")]
    if not models:
        if _layers(manifest, "tensor"):
            raise Unknown(f"{spec} is kept tensor by tensor, not as a GGUF", fix="give the model it was made from")
        raise Malformed(f"{spec} has no weights here", fix="pull a model that runs on this machine, not in the cloud")
    names = ["model.gguf"]
    if len(models) > 1:
        names = [f"model-{n:05d}-of-{len(models):05d}.gguf" for n in range(1, len(models) + 1)]
    found = dict(zip(names, models, strict=True))
    for n, layer in enumerate(_layers(manifest, "projector"), start=1):
        found[f"mmproj-{n}.gguf"] = _blob(root, layer, spec)
    config = manifest.get("config")
    return OllamaModel(
        location=spec,
        base=name if namespace == _NAMESPACE else f"{namespace}/{name}",
        version=None if tag == _TAG else tag,
        files={file: size for file, (_, size) in found.items()},
        paths={file: path for file, (path, _) in found.items()},
        adapters=tuple(_blob(root, layer, spec)[0] for layer in _layers(manifest, "adapter")),
        metadata=_json(_blob(root, config, spec)[0], spec) if isinstance(config, dict) else {},
    )


def _blob(root: Path, layer: Mapping[str, object], spec: str) -> tuple[Path, int]:
    """A layer's file and its size."""
    digest = _DIGEST.fullmatch(str(layer.get("digest")))
    if digest is None:
        raise Refused(f"{spec}: its manifest names a layer that is no digest", fix="ollama pull it again")
    stated = layer.get("size")
    for mark in "-:":  # a colon in stores of early versions
        path = root / "blobs" / f"sha256{mark}{digest[1].lower()}"
        if path.is_file():
            size = path.stat().st_size
            if isinstance(stated, int) and stated != size:
                raise Truncated(f"{spec}: a layer has {size:,} bytes, not {stated:,}", fix="ollama pull it again")
            return path, size
    raise NotFound(f"{spec}: its layer sha256-{digest[1][:12]} is not in the store", fix="ollama pull it again")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False

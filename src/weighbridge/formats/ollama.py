"""Models in the local store of Ollama: `ollama:NAME[:TAG]`.

Source: Ollama 0.12, its store's layout: `manifests/HOST/NAMESPACE/NAME/TAG` is a JSON list of layers, each a file
`blobs/sha256-DIGEST`; the layer of type `application/vnd.ollama.image.model` is a GGUF.
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
_PART = re.compile(r"[A-Za-z0-9_][\w.\-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_LAYER = "application/vnd.ollama.image."
_LARGEST = 4 << 20  # of a manifest or a config; real ones take kilobytes
_NEAR = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaModel:
    """A model of the store. `files` names it for readers: `NAME.gguf`, and `mmproj-N.gguf` for image projectors.

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
        Malformed: a manifest that is none. Truncated: a layer shorter than the manifest says.
        Refused: a manifest that points outside the store.
        Unknown: a model that Ollama keeps tensor by tensor, not as a GGUF.
    """
    wanted = _parts(spec.removeprefix("ollama:"), spec)
    roots = stores(environ)
    for root in roots:
        manifest = _manifest(root, wanted)
        if manifest is not None:
            return _model(root, _json(manifest, spec), spec, wanted)
    known = sorted({name for root in roots for name in installed(root)})
    asked = _short(wanted)
    near = difflib.get_close_matches(asked, known, n=_NEAR, cutoff=0.4)
    near = [name for name in known if name.partition(":")[0] == asked.partition(":")[0]][:_NEAR] or near
    if not known:
        raise NotFound(f"no model {asked}: Ollama's store is empty or not there", fix=f"ollama pull {asked}")
    raise NotFound(f"no model {asked} in Ollama's store", fix=f"it has {', '.join(near or known[:_NEAR])}")


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
    folder = root / "manifests"
    for path in folder.glob("*/*/*/*"):
        if not path.name.startswith(".") and path.is_file():
            host, namespace, name, tag = path.relative_to(folder).parts
            yield _short((host, namespace, name, tag))


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
    """The manifest's path. Ollama's names do not differ in case only, a file system's may."""
    path = root / "manifests"
    for part in parts:
        if (path / part).exists():
            path = path / part
            continue
        try:
            path = next(entry for entry in path.iterdir() if entry.name.lower() == part.lower())
        except (StopIteration, OSError):
            return None
    return path if path.is_file() else None


def _json(path: Path, name: str) -> dict[str, object]:
    raw = LocalFile(path, name=name).read(0, _LARGEST + 1)
    try:
        found = json.loads(raw) if len(raw) <= _LARGEST else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Malformed(f"{name}: Ollama's record of it is damaged", fix="ollama pull it again")
    return found


def _model(root: Path, manifest: Mapping[str, object], spec: str, parts: tuple[str, str, str, str]) -> OllamaModel:
    listed = manifest.get("layers")
    layers = [layer for layer in listed if isinstance(layer, dict)] if isinstance(listed, list) else []

    def blobs(kind: str) -> list[tuple[Path, int]]:
        return [_blob(root, layer, spec) for layer in layers if layer.get("mediaType") == _LAYER + kind]

    models = blobs("model")
    if not models:
        if any(layer.get("mediaType") == f"{_LAYER}tensor" for layer in layers):
            raise Unknown(f"{spec} is kept tensor by tensor, not as a GGUF", fix="give the model it was made from")
        raise Malformed(
            f"{spec}: its manifest lists no weights", fix="a model that Ollama runs elsewhere has none here"
        )
    names = [f"{parts[2]}.gguf"]
    if len(models) > 1:
        names = [f"{parts[2]}-{n:05d}-of-{len(models):05d}.gguf" for n in range(1, len(models) + 1)]
    found = dict(zip(names, models, strict=True))
    found |= {f"mmproj-{n}.gguf": blob for n, blob in enumerate(blobs("projector"), start=1)}
    config = manifest.get("config")
    namespace, name, tag = parts[1:]
    return OllamaModel(
        location=spec,
        base=name if namespace == _NAMESPACE else f"{namespace}/{name}",
        version=None if tag == _TAG else tag,
        files={name: size for name, (_, size) in found.items()},
        paths={name: path for name, (path, _) in found.items()},
        adapters=tuple(path for path, _ in blobs("adapter")),
        metadata=_json(_blob(root, config, spec)[0], spec) if isinstance(config, dict) else {},
    )


def _blob(root: Path, layer: Mapping[str, object], spec: str) -> tuple[Path, int]:
    """A layer's file and its size."""
    digest = _DIGEST.fullmatch(str(layer.get("digest")))
    if digest is None:
        raise Refused(f"{spec}: its manifest names a layer that is no digest", fix="ollama pull it again")
    # Before 0.1.37, Ollama wrote a colon, which Windows does not allow.
    for mark in "-:":
        path = root / "blobs" / f"sha256{mark}{digest[1]}"
        if path.is_file():
            size = path.stat().st_size
            if isinstance(layer.get("size"), int) and layer["size"] != size:
                raise Truncated(
                    f"{spec}: a layer has {size:,} bytes, not {layer['size']:,}", fix="ollama pull it again"
                )
            return path, size
    raise NotFound(f"{spec}: its layer sha256-{digest[1][:12]} is not in the store", fix="ollama pull it again")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False

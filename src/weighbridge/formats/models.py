"""From what a user types to a ledger."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from weighbridge.formats import config as configs
from weighbridge.formats import naming, peft, safetensors, shards
from weighbridge.formats.candidates import candidates
from weighbridge.formats.choose import Choice, choose
from weighbridge.formats.folder import LocalFolder, Repository, read_small
from weighbridge.formats.header import Header
from weighbridge.formats.local import LocalFile
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import Architecture, File, Ledger, Rows, Signature, Source, Stated
from weighbridge.ledger.errors import Malformed, NotFound, Refused, WeighError

Progress = Callable[[int, int], None]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")
CONFIG = "config.json"
# JSON files that lie beside weights and describe no model, or not as config.json does.
_NO_CONFIGS = frozenset({"adapter_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"})
_ENDINGS = (".safetensors", ".gguf", ".pt", ".pth", ".bin", ".ckpt", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """A model read but not yet joined with a base."""

    repository: Repository
    choice: Choice
    header: Header
    files: Sequence[File]
    config: Mapping[str, object]
    adapter_config: Mapping[str, object] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        if self.choice.kind == "gguf":
            return configs.from_gguf(self.header.metadata)
        return configs.described(self.config)


def open_model(
    spec: str | os.PathLike[str],
    *,
    file: str | None = None,
    base: str | None = None,
    offline: bool = False,
    settings: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Ledger:
    """The ledger of a model, from headers alone; where there are no weights, from its config.json.

    `spec` is a path, `ollama:NAME[:TAG]` or a hub id `org/name[@revision]`; `::LABEL` after any of them, or `file`,
    chooses among several. `base` names the model that an adapter belongs to, where the adapter does not say or the
    place has changed. `settings` change fields of the config: the model that it then describes is counted, whatever weights
    lie beside it. `progress(done, total)` counts remote headers.

    Raises:
        WeighError: every way in which this can fail, with its mend.

    """
    repository, selector, file = _repository(os.fspath(spec), file, offline=offline)
    if settings or _is_config_alone(repository, file):
        if selector or base:
            raise Refused(f"{spec} is taken for its config.json", fix="leave :: and --base out")
        return _configured(repository, file or CONFIG, settings or {})
    parts = _read(repository, selector=selector, file=file, progress=progress)
    if parts.choice.kind == "adapter":
        return _with_base(parts, base=base, offline=offline)
    if base is not None:
        raise Refused(f"{spec} is no adapter", fix="leave --base out")
    return _ledger(parts)


def _parts(spec: str, *, file: str | None, offline: bool, progress: Progress | None) -> _Parts:
    repository, selector, file = _repository(spec, file, offline=offline)
    return _read(repository, selector=selector, file=file, progress=progress)


def of_arch(model_type: str, settings: Mapping[str, object]) -> Ledger:
    """The model of that type with its class's defaults and these fields, which need not exist anywhere.

    Raises:
        WeighError: no such type, or fields that make no model.
    """
    from weighbridge.formats import configured

    config = configured.with_settings(configured.of_arch(model_type), settings)
    return configured.ledger_of(config, location=f"--arch {model_type}", name=model_type)


def _is_config_alone(repository: Repository, file: str | None) -> bool:
    """Whether the user names a config, or a place that has one and no weights."""
    if file is not None:
        return file.endswith(".json") and file.rpartition("/")[2] not in _NO_CONFIGS
    return CONFIG in repository.files and not any(one for one in candidates(repository.files) if not one.apart)


def _configured(repository: Repository, name: str, settings: Mapping[str, object]) -> Ledger:
    from weighbridge.formats import configured

    if name not in repository.files:
        raise NotFound(f"{repository.location} has no {name} to set fields of")
    config = configured.with_settings(_json(repository, name), settings)
    return configured.ledger_of(
        config, location=repository.location, name=repository.base, version=repository.version
    )


def _repository(spec: str, file: str | None, *, offline: bool) -> tuple[Repository, str | None, str | None]:
    """Where a model's files lie, the label chosen among them, the file chosen among them."""
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
        return LocalFolder(path, location=spec, base=base, version=version), selector or None, file
    if exists:
        if selector or file:
            raise Refused(
                f"{name} is one file: there is nothing to choose", fix="leave the choice out, or name its folder"
            )
        base, version = naming.local_base(path)
        folder = LocalFolder(path.parent, location=spec, base=base, version=version, deep=False)
        if path.name not in folder.files:
            LocalFile(path)  # says why: not a regular file, or not readable
        return folder, None, path.name
    is_path = name.startswith((".", "/", "~")) or name.lower().endswith(_ENDINGS)
    if is_path or not _HUB_ID.fullmatch(name.partition("@")[0]):
        raise NotFound(f"no such file or folder: {name}", fix="give a path, a hub id (org/name) or ollama:NAME")
    from weighbridge.formats.hub import resolve

    return resolve(spec, file=file, offline=offline), selector or None, file


def _read(
    repository: Repository,
    *,
    selector: str | None,
    file: str | None,
    progress: Progress | None,
) -> _Parts:
    prefetch = getattr(repository, "prefetch", None)

    def indexed(index: str) -> set[str]:
        raw = read_small(repository, index, largest=shards.LARGEST_INDEX) or b""
        return set(shards.listed(raw, index).values())

    choice = choose(repository.files, selector=selector, file=file, where=repository.location, indexed=indexed)
    config = _json(repository, "config.json")
    weight_map = None
    names = list(choice.files)
    if choice.index is not None:
        raw = read_small(repository, choice.index, largest=shards.LARGEST_INDEX)
        weight_map = shards.shards_of(raw or b"", choice.index, repository.files)
        names = sorted(set(weight_map.values()))
    files = [repository.open(name) for name in names]
    if prefetch is not None:
        prefetch(files, progress=progress)
    headers = [(name, _header(opened, at)) for at, (name, opened) in enumerate(zip(names, files, strict=True))]
    for opened in files:
        if isinstance(opened, LocalFile):
            opened.close()  # a model of 1,000 shards must not hold 1,000 descriptors
    header = shards.join(headers, weight_map)
    if not header.rows:
        raise Malformed(f"{repository.location} holds no tensor")
    if choice.kind == "gguf":
        _check_split(headers, header)
    adapter_config = _json(repository, peft.CONFIG) if choice.kind == "adapter" else {}
    return _Parts(
        repository=repository,
        choice=choice,
        header=header,
        files=files,
        config=config,
        adapter_config=adapter_config,
    )


def _json(repository: Repository, name: str) -> dict[str, object]:
    raw = read_small(repository, name, largest=configs.LARGEST)
    return {} if raw is None else parse_json(raw, name)


def _header(file: File, index: int) -> Header:
    """Read by the reader whose magic the file begins with: names and endings may lie."""
    start = file.read(0, 9)
    if start[8:] == b"{":  # first, since a header of 640 bytes begins like a pickle: 80 02
        return safetensors.read(file, index=index)
    if start[:4] == b"GGUF":
        from weighbridge.formats import gguf

        return gguf.read(file, index=index)
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        from weighbridge.formats import torch_file

        return torch_file.read(file, index=index)
    if start.startswith(b"version "):
        raise Malformed(f"{file.name} is a Git LFS pointer, not the file itself", fix="git lfs pull")
    if start.lower().startswith((b"<!doctype", b"<html")):
        raise Malformed(f"{file.name} is a web page, not a model", fix="download it again")
    if int.from_bytes(start[:8], "little") > safetensors.LARGEST_HEADER:
        raise Malformed(
            f"{file.name} is no model file",
            fix="safetensors, GGUF and PyTorch files are read, whatever they are called",
        )
    return safetensors.read(file, index=index)


def _check_split(headers: Sequence[tuple[str, Header]], joined: Header) -> None:
    """A split GGUF says how many parts and tensors it has."""
    metadata = headers[0][1].metadata
    count, tensors = metadata.get("split.count"), metadata.get("split.tensors.count")
    name = headers[0][0]
    if isinstance(count, int) and count > 1 and count != len(headers):
        raise NotFound(f"{name} is one of {count} parts, {len(headers)} are there", fix="download the others beside it")
    if isinstance(tensors, int) and tensors and tensors != len(joined.rows):
        raise Malformed(f"{name} announces {tensors} tensors, its parts hold {len(joined.rows)}")


def _ledger(parts: _Parts) -> Ledger:
    architecture = parts.architecture
    return Ledger(
        source=Source(location=parts.repository.location, files=parts.files),
        format=parts.choice.kind,
        rows=parts.header.rows,
        architecture=architecture,
        metadata=parts.header.metadata,
        aliases=parts.header.aliases,
        signature=_signature(parts, architecture),
        notes=[*_notes(parts), *parts.header.notes],
        stated=parts.header.stated,
    )


def _signature(parts: _Parts, architecture: Architecture) -> Signature:
    base, label = parts.repository.base, parts.choice.label
    named = naming.signature(
        base=base,
        version=parts.repository.version,
        architecture=architecture,
        metadata=parts.header.metadata,
        config=parts.config,
    )
    if named.quantization is None and label:
        return Signature(base_model=named.base_model, version=named.version, quantization=label.lower())
    return named


def _notes(parts: _Parts) -> list[str]:
    notes = []
    if parts.choice.kind != "gguf" and not parts.config:
        notes.append("no config.json beside it: ties and experts are judged from names alone")
    adapters = len(getattr(parts.repository, "adapters", ()))
    if adapters:
        notes.append(f"Ollama applies {adapters} adapter{'s' * (adapters > 1)} to it when it loads: not counted here")
    return notes


def _with_base(parts: _Parts, *, base: str | None, offline: bool) -> Ledger:
    """An adapter with its base before it, when that is at hand: here, or in the hub's cache."""
    name = base or peft.base_of(parts.adapter_config)
    under, why = _base_at_hand(name, parts, insist=base is not None, offline=offline)
    adapter = parts.repository.base
    copies = peft.copies(parts.header.rows, parts.adapter_config)
    if under is None:
        return Ledger(
            source=Source(location=parts.repository.location, files=parts.files),
            format="peft",
            rows=parts.header.rows,
            metadata=parts.header.metadata,
            aliases={**copies, **parts.header.aliases},
            adapter_files=range(len(parts.files)),
            signature=Signature(base_model=(name or "unknown-base").lower(), adapter=adapter.lower()),
            notes=[f"the base {name or 'is not named and'} {why}: only the adapter's own tensors are counted"],
            stated=parts.header.stated,
        )
    first = len(under.source.files)
    return Ledger(
        source=Source(location=parts.repository.location, files=[*under.source.files, *parts.files]),
        format="peft",
        rows=Rows.joined([under.rows, Rows.of(parts.header.rows).after(first)]),
        architecture=under.architecture,
        metadata={**under.metadata, **parts.header.metadata},
        aliases={**under.ties, **copies, **parts.header.aliases},
        adapter_files=range(first, first + len(parts.files)),
        signature=replace(under.signature, adapter=adapter.lower()),
        notes=[f"base: {under.source.location}", *under.notes],
        stated=Stated.joined([under.stated, parts.header.stated]),
    )


def _base_at_hand(name: str | None, parts: _Parts, *, insist: bool, offline: bool) -> tuple[Ledger | None, str]:
    """(the base, "") or (None, why not). A base that the user names may come from the hub and must be readable."""
    if name is None:
        return None, "cannot be looked for"
    places = [Path(name).expanduser()]
    if isinstance(parts.repository, LocalFolder):
        places.append(parts.repository.path / name)
    try:
        place = next((os.path.normpath(path) for path in places if path.exists()), None)
    except (OSError, ValueError):  # a name that no path can have
        place = None
    if place is None and _HUB_ID.fullmatch(name):
        from weighbridge.formats.hub import cached_snapshot

        snapshot = cached_snapshot(name, "main")
        place = str(snapshot) if snapshot else None
    if place is None and not insist:
        return None, "is not at hand"
    try:
        under = _parts(place or name, file=None, offline=offline, progress=None)
        if under.choice.kind == "adapter":
            raise Refused(f"{name} is itself an adapter", fix="name the full model with --base")
        return _ledger(under), ""
    except WeighError as error:
        if insist:
            raise
        return None, f"cannot be read ({error.what})"

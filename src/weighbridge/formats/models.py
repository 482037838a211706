"""From what a user types to a ledger."""

import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from weighbridge.formats import config as configs
from weighbridge.formats import naming, peft, pipeline, shards
from weighbridge.formats.candidates import candidates
from weighbridge.formats.choose import Choice, choose
from weighbridge.formats.detect import folder_reader, read_header
from weighbridge.formats.folder import LocalFolder, Repository, read_small
from weighbridge.formats.header import Header
from weighbridge.formats.local import LocalFile
from weighbridge.formats.locate import HUB_ID, locate
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import Architecture, File, Ledger, Rows, Signature, Source, Stated
from weighbridge.ledger.errors import Malformed, NotFound, Refused, WeighError

Progress = Callable[[int, int], None]
CONFIG = "config.json"
# JSON files that lie beside weights and describe no model, or not as config.json does.
_NO_CONFIGS = frozenset({"adapter_config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"})


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
            return configs.from_gguf(self.header.metadata, self.header.rows)
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
    place has changed. `settings` change fields of the config: the model that it then describes is counted, whatever
    weights lie beside it. `progress(done, total)` counts remote headers.

    Raises:
        WeighError: every way in which this can fail, with its mend.

    """
    repository, selector, file = locate(os.fspath(spec), file, offline=offline)
    if settings or _is_config_alone(repository, file):
        if selector or base:
            raise Refused(f"{spec} is taken for its config.json", fix="leave :: and --base out")
        return _configured(repository, file or CONFIG, settings or {})
    if pipeline.INDEX in repository.files and selector is None and file is None:
        return _pipeline(repository, progress=progress)
    as_folder = folder_reader(repository) if selector is None and file is None else None
    if as_folder is not None:
        return _folder(repository, *as_folder)
    parts = _read(repository, selector=selector, file=file, progress=progress)
    if parts.choice.kind == "adapter":
        return _with_base(parts, base=base, offline=offline)
    if base is not None:
        raise Refused(f"{spec} is no adapter", fix="leave --base out")
    return _ledger(parts)


def _parts(spec: str, *, file: str | None, offline: bool, progress: Progress | None) -> _Parts:
    repository, selector, file = locate(spec, file, offline=offline)
    return _read(repository, selector=selector, file=file, progress=progress)


def of_arch(model_type: str, settings: Mapping[str, object]) -> Ledger:
    """The model of that type with its class's defaults and these fields, which need not exist anywhere.

    Raises:
        WeighError: no such type, or fields that make no model.
    """
    from weighbridge.formats import configured

    config = configured.with_settings(configured.of_arch(model_type), settings)
    return configured.ledger_of(config, location=f"--arch {model_type}", name=model_type, asked=settings)


def _pipeline(repository: Repository, *, progress: Progress | None) -> Ledger:
    """The models of a diffusers pipeline as one, each under the name of its folder."""
    raw = read_small(repository, pipeline.INDEX, largest=configs.LARGEST) or b""
    files: list[File] = []
    rows: list[Rows] = []
    stated: list[Stated] = []
    aliases: dict[str, str] = {}
    counted: dict[str, object] = {}
    for name, class_name in pipeline.components(repository, raw):
        part = pipeline.Component(repository, name)
        if not candidates(part.files):
            if (
                any(path.endswith("config.json") and "_model" not in path for path in part.files)
                and CONFIG in part.files
            ):
                raise NotFound(
                    f"{part.location} ({class_name}) has no weights", fix="download them beside its config.json"
                )
            continue  # a scheduler, a tokenizer: no model
        ledger = _ledger(_read(part, selector=None, file=None, progress=progress))
        own = ledger.rows.after(len(files))
        rows.append(
            Rows(names=[f"{name}.{n}" for n in own.names], kinds=own.kinds, files=own.files, offsets=own.offsets)
        )
        files += ledger.source.files
        aliases |= {f"{name}.{copy}": f"{name}.{original}" for copy, original in ledger.ties.items()}
        stated.append(_judged(ledger, name))
        counted[name] = {"class": class_name, "parameters": ledger.total, "bytes": ledger.nbytes}
    if not rows:
        raise NotFound(f"{repository.location} is a pipeline of which no model is there", fix="download its folders")
    return Ledger(
        source=Source(location=repository.location, files=files),
        format="diffusers pipeline",
        rows=Rows.joined(rows),
        metadata={"components": counted},
        aliases=aliases,
        signature=Signature(base_model=repository.base.lower(), version=repository.version),
        stated=Stated.joined(stated),
    )


def _folder(repository: Repository, read: Callable[..., Header], format: str) -> Ledger:
    """A format that is a folder, by its reader."""
    header = read(repository, index=0)
    return Ledger(
        source=Source(location=repository.location, files=header.files),
        format=format,
        rows=header.rows,
        metadata=header.metadata,
        aliases=header.aliases,
        signature=Signature(base_model=repository.base.lower(), version=repository.version),
        notes=header.notes,
        stated=header.stated,
    )


def _judged(ledger: Ledger, name: str) -> Stated:
    """What was found of a model's tensors, as statements under the model's name: a neighbor's config says nothing of
    it.
    """
    judged = [(f"{name}.{n}", family) for family in ledger.families for n in family.names]
    return Stated(
        kinds={n: family.extra or family.kind for n, family in judged},
        roles={n: family.role for n, family in judged},
        elements={n: family.elements for n, family in judged},
        frozen=frozenset(n for n, family in judged if not family.trainable),
    )


def _is_config_alone(repository: Repository, file: str | None) -> bool:
    """Whether the user names a config, or a place that has one and no weights."""
    if file is not None:
        named = file.endswith(".json") and file.rpartition("/")[2] not in _NO_CONFIGS
        # XGBoost's models are JSON, too, and begin with their learner.
        return named and file in repository.files and b'"learner"' not in repository.open(file).read(0, 64)
    if CONFIG not in repository.files or any(one for one in candidates(repository.files) if not one.apart):
        return False
    for one in candidates(dict.fromkeys(getattr(repository, "odd", ()), 0)):
        repository.open(one.files[0])  # says what is wrong with it: the config alone is not what was meant
    return True


def _configured(repository: Repository, name: str, settings: Mapping[str, object]) -> Ledger:
    from weighbridge.formats import configured

    if name not in repository.files:
        raise NotFound(f"{repository.location} has no {name} to set fields of")
    if not name.endswith(".json"):
        raise Refused(f"--set changes fields of a config.json, and {name} is none", fix="name a folder that has one")
    stated = _json(repository, name)
    return configured.ledger_of(
        configured.with_settings(stated, settings),
        location=repository.location,
        name=repository.base,
        version=repository.version,
        asked=[path for path in settings if not configured.states(stated, path)],
    )


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
    headers = [
        (name, read_header(opened, at, _beside(repository, name)))
        for at, (name, opened) in enumerate(zip(names, files, strict=True))
    ]
    if len(headers) == 1:
        files += headers[0][1].files
    for opened in files:
        if isinstance(opened, LocalFile):
            opened.close()  # a model of 1,000 shards must not hold 1,000 descriptors
    header = shards.join(headers, weight_map)
    if not header.rows and choice.kind != "skops":  # a fitted encoder learned nothing, and its notes say so
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


def _beside(repository: Repository, name: str) -> Callable[[str], File | None]:
    """Opens files by their names relative to the folder that `name` lies in."""
    folder = name.rpartition("/")[0]

    def opened(other: str) -> File | None:
        path = posixpath.normpath(posixpath.join(folder, other))
        return repository.open(path) if path in repository.files else None

    return opened


def _json(repository: Repository, name: str) -> dict[str, object]:
    raw = read_small(repository, name, largest=configs.LARGEST)
    return {} if raw is None else parse_json(raw, name)


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
        format=parts.header.format or parts.choice.kind,
        rows=parts.header.rows,
        architecture=architecture,
        metadata=parts.header.metadata,
        aliases=parts.header.aliases,
        signature=_signature(parts, architecture),
        notes=[*_notes(parts), *parts.header.notes],
        stated=replace(parts.header.stated, apart=configs.apart(parts.config)),
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
    if parts.choice.kind in ("safetensors", "torch", "adapter") and not parts.config:
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
    if under.format in ("safetensors", "torch") and not peft.fits(parts.header.rows, under.rows.names):
        raise Refused(
            f"{under.source.location} has none of the modules that the adapter {adapter} changes",
            fix="name its own base with --base",
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
    if place is None and HUB_ID.fullmatch(name):
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

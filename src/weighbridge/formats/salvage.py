"""What can be read of a checkpoint with missing or damaged files: for `weigh show --compare`, which asks just that."""

from collections import defaultdict
from collections.abc import Mapping

from weighbridge.formats import config as configs
from weighbridge.formats import configured, shards
from weighbridge.formats.blueprints import class_of
from weighbridge.formats.candidates import Candidate, candidates
from weighbridge.formats.detect import read_header
from weighbridge.formats.folder import Repository, read_small
from weighbridge.formats.header import Header
from weighbridge.formats.locate import locate
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import File, Ledger, Rows, Source, Stated
from weighbridge.ledger.errors import NotFound, Refused, WeighError

CONFIG = "config.json"


def config_and_files(spec: str, *, offline: bool = False) -> tuple[Ledger, Ledger | None, list[str], set[str]]:
    """(what config.json describes, what the files hold, files that are missing or damaged, the model types in it).

    Raises:
        NotFound: no config.json to compare with.
        Refused: files that no config.json describes: GGUF, an adapter.
    """
    repository, selector, file = locate(spec, None, offline=offline)
    if CONFIG not in repository.files and "adapter_config.json" in repository.files:
        raise _adapter(spec)
    if CONFIG not in repository.files:
        raise NotFound(f"{spec} has no config.json to compare with", fix="download it beside the weights")
    if file is not None or selector:
        raise Refused("--compare is for a folder or repository as a whole", fix="leave the file out")
    raw = read_small(repository, CONFIG, largest=configs.LARGEST)
    config = parse_json(raw or b"", CONFIG)
    expected = configured.ledger_of(
        config, location=repository.location, name=repository.base, version=repository.version
    )
    found = [one for one in candidates(repository.files) if not one.folder and not one.apart]
    found = [one for one in found if one.kind in ("safetensors", "torch")]
    main = [one for one in found if one.kind == "safetensors"] or found
    # A repository may hold the same model in several precisions: the one by the usual name is the model.
    main = [one for one in main if one.stem in ("model", "pytorch_model")] or main
    if not main and "adapter_config.json" in repository.files:
        raise _adapter(spec)
    return expected, *_read(repository, main, config), types_in(config)


def _adapter(spec: str) -> Refused:
    return Refused(f"{spec} is an adapter: a config.json, if any, describes its base", fix="compare the base")


def types_in(config: Mapping[str, object]) -> set[str]:
    """The model types that a config speaks of, those that its classes fill in among them."""
    found: set[str] = set()
    waiting: list[object] = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += part.values()
            stated = part.get("model_type")
            known = class_of(stated) if isinstance(stated, str) and stated not in found else None
            if isinstance(stated, str):
                found.add(stated)
            waiting += [{"model_type": sub.type} for sub in (known.parts.values() if known is not None else ())]
    return found


def _read(
    repository: Repository, found: list[Candidate], config: Mapping[str, object]
) -> tuple[Ledger | None, list[str]]:
    names = sorted({name for one in found for name in one.files})
    problems: list[str] = []
    # Only the index of the files at hand: that of another format often lies beside them.
    kinds = {one.kind for one in found} or {"safetensors", "torch"}
    ends = {"safetensors": ".safetensors.index.json", "torch": ".bin.index.json"}
    ends_here = tuple(end for kind, end in ends.items() if kind in kinds)
    index = next((name for name in repository.files if name.endswith(ends_here)), None)
    listed: Mapping[str, str] = {}
    if index is not None:
        try:
            listed = shards.listed(read_small(repository, index, largest=shards.LARGEST_INDEX) or b"", index)
        except WeighError as error:
            problems.append(str(error))
        else:
            wanted = sorted(set(listed.values()))
            held = {name: sum(shard == name for shard in listed.values()) for name in wanted}
            problems += [
                f"{name} is not there: {held[name]:,} tensors" for name in wanted if name not in repository.files
            ]
            names = [name for name in wanted if name in repository.files] or names
    else:
        problems += [f"{name} is not there" for one in found for name in one.missing]
    promised: defaultdict[str, set[str]] = defaultdict(set)
    for tensor, name in listed.items():
        promised[name].add(tensor)
    files: list[File] = []
    headers: list[Header] = []
    for name in names:
        opened = repository.open(name)
        try:
            headers.append(read_header(opened, len(files)))
        except WeighError as error:
            problems.append(str(error) if name in str(error) else f"{name}: {error}")
            continue
        files.append(opened)
        lost = promised[name] - {row.name for row in headers[-1].rows}
        if lost:
            problems.append(f"{name} lacks {len(lost):,} tensors that {index} lists in it, {min(lost)} first")
    if not headers:
        return None, problems or [f"{repository.location} has no weights"]
    ledger = Ledger(
        source=Source(location=repository.location, files=files),
        format=found[0].kind,
        rows=Rows.joined([Rows.of(header.rows) for header in headers]),
        architecture=configs.from_config(config),
        metadata={key: value for header in headers for key, value in header.metadata.items()},
        aliases={copy: original for header in headers for copy, original in header.aliases.items()},
        stated=Stated.joined([header.stated for header in headers]),
    )
    return ledger, problems

"""Diffusers pipelines: a folder of models, named by model_index.json."""

from collections.abc import Iterator, Mapping

from weighbridge.formats.folder import Repository
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed, NotFound

INDEX = "model_index.json"
_LARGEST = 1_000_000
# Classes that have settings and no weights.
_WEIGHTLESS = ("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "Extractor", "ImageProcessorFast", "Guider")


class Component:
    """One folder of a pipeline, as a repository of its own."""

    def __init__(self, whole: Repository, name: str) -> None:
        self.whole, self.name = whole, name
        self.location = f"{whole.location}/{name}"
        self.base = f"{whole.base}/{name}"
        self.version = whole.version
        self.files: Mapping[str, int] = {
            path.removeprefix(f"{name}/"): size for path, size in whole.files.items() if path.startswith(f"{name}/")
        }
        prefetch = getattr(whole, "prefetch", None)
        if prefetch is not None:
            self.prefetch = prefetch

    def open(self, name: str, /) -> File:
        """The file of that name."""
        return self.whole.open(f"{self.name}/{name}")


def components(repository: Repository, raw: bytes) -> Iterator[tuple[str, str]]:
    """(folder, class) of each part of a pipeline that may hold weights.

    Raises:
        Malformed: a model_index.json that is none.
        NotFound: a part that it lists is not there.
    """
    if len(raw) > _LARGEST:
        raise Malformed(f"{INDEX} has {len(raw):,} bytes, more than any real one")
    for name, entry in sorted(parse_json(raw, INDEX).items()):
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2:
            continue
        if not isinstance(entry[1], str):
            continue
        if any(path.startswith(f"{name}/") for path in repository.files):
            yield name, entry[1]
        elif not entry[1].endswith(_WEIGHTLESS):
            raise NotFound(
                f"{repository.location} lacks {name} ({entry[1]}), which {INDEX} lists",
                fix="download its folder, or name one part: the folder beside it",
            )

"""Which files of a folder or repository are the model, by names and sizes alone: nothing is opened.

What transformers, PEFT and llama.cpp write and load by default is chosen; where two models are left, none is. In order:
safetensors or an adapter, then GGUF, then PyTorch files, then formats of single files, then the same in subfolders.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from weighbridge.formats.candidates import MOST_MISSING, TORCH, Candidate, candidates, variant_of
from weighbridge.ledger import Bytes
from weighbridge.ledger.errors import Ambiguous, NotFound

_CONSOLIDATED = r"(?i)consolidated(?![a-z]).*"  # compiled when first used
_MOST_LISTED = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A model's files.

    `kind` is "safetensors", "gguf", "torch" or "adapter"; of a file with another ending, that ending.
    `index` lists which tensor lies in which of the files. `label` is a GGUF's quantization, as its name says it.
    """

    kind: str
    files: tuple[str, ...]
    index: str | None
    label: str | None


def choose(
    files: Mapping[str, int],
    *,
    selector: str | None = None,
    file: str | None = None,
    where: str,
    indexed: Callable[[str], Collection[str]] | None = None,
) -> Choice:
    """The model among `files`, {relative name: bytes}.

    `selector` is what stands after `::`: a quantization (`Q4_K_M`, in any case), a file or a subfolder. `file` is the
    name of a file: of a split GGUF any part stands for all, a safetensors shard for itself. `where` is for messages.
    `indexed` gives the names that an index lists, relative to its folder; it is called only when names do not tell.

    Raises:
        Ambiguous: several models, listed with their sizes.
        NotFound: no weights, no such file or quantization, or shards missing.

    """
    found = candidates(files)
    if file is not None:
        return _chosen(_named(file, files, found, where), where)
    found = _selected(selector, found, where) if selector else _preferred(found, files, indexed, where)
    if not found:
        raise _nothing(files, where)
    if len(found) > 1:
        raise _several(found, where, narrowed=bool(selector))
    return _chosen(found[0], where)


def _chosen(one: Candidate, where: str) -> Choice:
    if one.missing:
        raise NotFound(
            f"{where} has {len(one.files)} of {one.of} shards of {one.stem}, missing:"
            f" {_listed(one.missing, of=one.of - len(one.files))}",
            fix="download them beside the others",
        )
    return Choice(kind=one.kind, files=one.files, index=one.index, label=one.label)


def _named(file: str, files: Mapping[str, int], found: Iterable[Candidate], where: str) -> Candidate:
    file = file.removeprefix("./")
    if file not in files:
        near = [name for name in files if name.rpartition("/")[2] == file]
        if len(near) != 1:
            near = near or difflib.get_close_matches(file, files, n=3) or sorted(files)[:MOST_MISSING]
            raise NotFound(f"no {file} in {where}", fix=f"it has {_listed(near)}" if near else "it is empty")
        file = near[0]
    for one in found:
        if one.index == file or (file in one.files and one.kind == "gguf"):
            return one
        if file in one.files:
            return replace(one, files=(file,), nbytes=files[file], index=None, of=0, missing=())
    folder, _, base = file.rpartition("/")
    stem, _, suffix = base.rpartition(".")
    kind = "torch" if suffix in TORCH else suffix.lower() if stem else "file"
    return Candidate(kind=kind, folder=f"{folder}/" if folder else "", stem=stem, files=(file,), nbytes=files[file])


def _selected(selector: str, found: Iterable[Candidate], where: str) -> list[Candidate]:
    wanted = selector.lower()
    by_file = {
        one: (*one.files, *(name.rpartition("/")[2] for name in one.files), one.folder + one.stem) for one in found
    }
    models = [one for one in by_file if not one.apart]
    by_label = {one: (one.label or "",) for one in models}
    by_plain_label = {one: ((one.label or "").removeprefix("UD-"),) for one in models}
    by_place = {one: (one.folder.rstrip("/"), one.stem, one.stem.rpartition(".")[2]) for one in models}
    for names in (by_file, by_label, by_plain_label, by_place):
        matching = [one for one, called in names.items() if wanted in (name.lower() for name in called)]
        if matching:
            return matching
    titles = {one.title: None for one in models}
    raise NotFound(f"no {selector} in {where}", fix=f"it has {_listed(titles)}" if titles else "it has no weights")


def _preferred(
    found: Iterable[Candidate], files: Mapping[str, int], indexed: Callable[[str], Collection[str]] | None, where: str
) -> list[Candidate]:
    """What is left when the conventions of those who wrote the files have spoken: one, none, or several."""
    models = [one for one in found if not one.apart]
    for level in ([one for one in models if not one.folder], [one for one in models if one.folder]):
        main = [one for one in level if one.kind in ("safetensors", "adapter")]
        if main:
            folders: dict[str, list[Candidate]] = {one.folder: [] for one in main}
            for one in main:
                folders[one.folder].append(one)
            if len(folders) > 1:
                folders.pop("original/", None)  # Meta's own layout of the same weights
            return [one for here in folders.values() for one in _one_folder(here, files, indexed, where)]
        if any(one.kind == "gguf" for one in level):
            return [one for one in models if one.kind == "gguf"]
        torch = [one for one in level if one.kind == "torch"]
        if torch:
            return _without_copies([one for one in torch if one.stem == "pytorch_model"] or torch)
        if level:
            return level
    return []


def _one_folder(
    level: list[Candidate], files: Mapping[str, int], indexed: Callable[[str], Collection[str]] | None, where: str
) -> list[Candidate]:
    level = _without_copies(level)
    folder = level[0].folder
    index = f"{folder}model.safetensors.index.json"
    if len(level) == 1 or index not in files:
        return level
    if indexed is None:
        # Files without numbers belong to the index that stands beside them; beside numbered ones they are a riddle.
        return level if any(one.index for one in level) else [_joined(level, index)]
    listed = {folder + name for name in indexed(index)}
    absent = sorted(listed - files.keys())
    if absent:
        names = _listed(absent[:MOST_MISSING], of=len(absent))
        raise NotFound(f"{where} lacks {names}, which {index} lists", fix="download them beside the others")
    inside = [one for one in level if not listed.isdisjoint(one.files)]
    outside = [one for one in level if listed.isdisjoint(one.files)]
    return [*([_joined(inside, index)] if inside else []), *outside]


def _joined(parts: list[Candidate], index: str) -> Candidate:
    """One model of several sets that one index lists: numbered shards and `mtp.safetensors`, say."""
    return replace(
        parts[0],
        stem="model",
        files=tuple(sorted(name for one in parts for name in one.files)),
        nbytes=sum(one.nbytes for one in parts),
        index=index,
        of=0,
        missing=(),
    )


def _without_copies(level: list[Candidate]) -> list[Candidate]:
    """Without the same weights packed otherwise: .bin adapters, `consolidated`, `fp16` variants, shards of a whole."""
    if any(one.kind == "adapter" and one.files[0].endswith(".safetensors") for one in level):
        level = [one for one in level if one.kind != "adapter" or one.files[0].endswith(".safetensors")]
    whole = {(one.folder, one.stem) for one in level if not one.missing}
    if any(stem == "model" for _, stem in whole):
        level = [one for one in level if not re.fullmatch(_CONSOLIDATED, one.stem)]
    level = [one for one in level if not ((of := variant_of(one.stem)) and (one.folder, of[0]) in whole)]
    level = [one for one in level if not (one.missing and (one.folder, one.stem) in whole)]
    single = {(one.folder, one.stem): one for one in level if not one.of}
    return [one for one in level if not one.of or not _repeats(one, single.get((one.folder, one.stem)))]


def _repeats(shards: Candidate, single: Candidate | None) -> bool:
    # One file and shards under one name: transformers loads the one file. Between the two only headers may differ.
    return single is not None and abs(shards.nbytes - single.nbytes) * 100 <= single.nbytes


def _several(found: list[Candidate], where: str, *, narrowed: bool) -> Ambiguous:
    labeled = len({one.title for one in found}) == len(found)
    titles = {one: one.title if labeled else replace(one, label=None).title for one in found}
    ordered = sorted(found, key=lambda one: (one.nbytes, titles[one]))
    listing = _listed([f"{titles[one]} ({Bytes(one.nbytes).human()})" for one in ordered])
    first = ordered[0]
    by_label = labeled and not narrowed and all(one.label for one in found)
    fix = f"choose one: {where}::{first.label}" if by_label else f"choose one: --file {first.files[0]}"
    return Ambiguous(f"{where} holds {len(found)} models: {listing}", fix=fix)


def _nothing(files: Mapping[str, int], where: str) -> NotFound:
    index = next((name for name in files if name.endswith((".safetensors.index.json", ".bin.index.json"))), None)
    if index is not None:
        return NotFound(f"{where} has {index} but none of the shards it lists", fix="download them beside it")
    if not files:
        return NotFound(f"{where} is empty, or holds no regular file")
    return NotFound(
        f"no weights in {where}: it has {_listed(sorted(files)[:10], of=len(files))}",
        fix="safetensors, GGUF and PyTorch files are looked for; name another with --file",
    )


def _listed(names: Collection[str], *, of: int | None = None) -> str:
    """The names, and how many more there are: `names` may be the first of `of`."""
    shown = list(islice(names, _MOST_LISTED))
    more = (len(names) if of is None else of) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")

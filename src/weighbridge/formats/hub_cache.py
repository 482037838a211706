"""The hub on this machine: its environment variables, its token, and the cache that its own client fills.

Source: huggingface_hub 2.4, its environment variables and its cache layout:
`models--ORG--NAME/refs/REVISION` holds a commit, `models--ORG--NAME/snapshots/COMMIT/` its files, as links to blobs.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weighbridge.formats.choose import choose
from weighbridge.formats.folder import LocalFolder, read_small
from weighbridge.formats.shards import LARGEST_INDEX, listed, shards_of
from weighbridge.ledger.errors import NotFound, Refused, WeighError

_COMMIT = re.compile(r"[0-9a-f]{5,64}")
_YES = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says. `timeout` is for data, `answer_timeout` for a first answer, both in seconds."""

    endpoint: str
    token: str | None = field(repr=False)
    cache: Path
    offline: bool
    timeout: float
    answer_timeout: float


def settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that huggingface_hub would take from `environ`.

    Raises:
        Refused: a timeout that is no number.

    """
    home = _path(environ.get("HF_HOME") or os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    token = None
    if not _is_set(environ, "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN")
        token = token or _read_token(_path(environ.get("HF_TOKEN_PATH") or str(home / "token")))
    return Settings(
        endpoint=(environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"),
        token=(token or "").strip() or None,
        cache=_path(cache) if cache else home / "hub",
        offline=_is_set(environ, "HF_HUB_OFFLINE") or _is_set(environ, "TRANSFORMERS_OFFLINE"),
        timeout=_seconds(environ, "HF_HUB_DOWNLOAD_TIMEOUT"),
        answer_timeout=_seconds(environ, "HF_HUB_ETAG_TIMEOUT"),
    )


def cached_snapshot(
    repo: str,
    revision: str,
    *,
    selector: str | None = None,
    file: str | None = None,
    offline: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Path | None:
    """The folder in the cache that holds all the weights of `repo` at `revision`: a branch, tag, `refs/pr/N` or commit.

    None when it is not there, or only in part. A GGUF repository is cached by the quantization, so what is there does
    not say what there is: without `selector` or `file` it counts only when `offline`. So does a lone config.json.
    """
    folder = _snapshot(settings(environ).cache, repo, revision)
    if folder is None or _lacking(folder, repo, selector=selector, file=file, offline=offline) is not None:
        return None
    return folder


def why_not_cached(
    repo: str,
    revision: str,
    *,
    selector: str | None = None,
    file: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> WeighError:
    """What to tell someone who is offline and has no complete snapshot of `repo` at `revision`."""
    cache = settings(environ).cache
    folder = _snapshot(cache, repo, revision)
    fix = f"go online once, or fetch it: hf download {repo}"
    if folder is not None:
        lacking = _lacking(folder, repo, selector=selector, file=file, offline=True)
        return NotFound(f"the local cache holds only a part of {repo}: {lacking or 'it changed just now'}", fix=fix)
    if _storage(cache, repo).is_dir():
        return NotFound(f"the local cache holds {repo}, but not its revision {revision}", fix=fix)
    return NotFound(f"{repo} is not in the local cache ({cache})", fix=fix)


def _storage(cache: Path, repo: str) -> Path:
    return cache / f"models--{repo.replace('/', '--')}"


def _snapshot(cache: Path, repo: str, revision: str) -> Path | None:
    storage = _storage(cache, repo)
    commit = revision
    if not _COMMIT.fullmatch(revision) or not (storage / "snapshots" / revision).is_dir():
        if ".." in Path(revision).parts or revision.startswith("/"):
            return None
        try:
            with (storage / "refs" / revision).open(encoding="ascii") as file:
                commit = file.read(100).strip()
        except (OSError, ValueError):
            return None
    folder = storage / "snapshots" / commit
    return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None


def _lacking(folder: Path, repo: str, *, selector: str | None, file: str | None, offline: bool) -> str | None:
    """What a snapshot lacks to be read, None when it lacks nothing."""
    try:
        snapshot = LocalFolder(folder, location=repo, base=repo, version=folder.name)
        if offline and file is None and selector is None and _is_config_alone(snapshot.files):
            return None

        def indexed(index: str) -> set[str]:
            return set(listed(read_small(snapshot, index, largest=LARGEST_INDEX) or b"", index).values())

        choice = choose(snapshot.files, selector=selector, file=file, where=repo, indexed=indexed)
        if choice.index is not None:
            shards_of(read_small(snapshot, choice.index, largest=LARGEST_INDEX) or b"", choice.index, snapshot.files)
    except WeighError as error:
        return error.what
    if choice.kind == "gguf" and not (selector or file or offline):
        return "other quantizations may exist"
    return None


def _is_config_alone(files: Mapping[str, int]) -> bool:
    weights = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".index.json")
    return "config.json" in files and not any(name.endswith(weights) for name in files)


def _path(text: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(text)))


def _read_token(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(10_000)
    except (OSError, ValueError):
        return None


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").upper() in _YES


def _seconds(environ: Mapping[str, str], name: str) -> float:
    text = environ.get(name) or "10"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise Refused(f"{name} is {text[:40]!r}, not a number of seconds", fix="unset it, or set it to 10")
    return seconds

"""Repositories on the hub, read by ranged requests and never downloaded whole."""

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Event
from urllib.parse import quote

from weighbridge.formats.folder import LocalFolder
from weighbridge.formats.http import Client, Reply
from weighbridge.formats.hub_cache import Settings, cached_snapshot, settings, why_not_cached
from weighbridge.formats.hub_file import GGUF_HEAD, HEAD, HubFile
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Unreachable, WeighError

__all__ = ["HubFile", "HubRepo", "cached_snapshot", "parse", "resolve"]

_LARGEST_INFO = 32 << 20
_MOST_VALUES = 1_000_000  # ten for each of 100,000 files
_MOST_FILES = 100_000
_THREADS = 16
_BUDGET = 4 << 20  # for the headers of all shards, where nothing tells how long they are
_NAME = r"(?!.*(?:\.\.|--))[A-Za-z0-9_](?:[\w.\-]{0,94}\w)?"
_REPO = re.compile(rf"{_NAME}(?:/{_NAME})?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)(?!/)[\x21-\x7e]{1,250}")
_LATER_PART = re.compile(r".*-(?!0*1-of-)\d+-of-\d+\.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRepo:
    """A repository at one commit: its files' names and sizes, each to be opened.

    `location` is what the user gave and `base` the name in it; `id` is the hub's own spelling, which differs where a
    repository was renamed. `version` is the commit.
    """

    location: str
    base: str
    id: str
    revision: str
    version: str | None
    files: Mapping[str, int]
    gated: bool
    tags: tuple[str, ...]
    client: Client = field(repr=False)
    _settings: Settings = field(repr=False)

    def open(self, name: str, /) -> HubFile:
        """The file of that name.

        Raises:
            NotFound: there is none.

        """
        if name not in self.files:
            raise NotFound(f"{self.base} has no {name}")
        return HubFile(
            name,
            size=self.files[name],
            address=_address(self._settings, self.id, self.version or self.revision, name),
            client=self.client,
            refusal=lambda reply: _refusal(reply, self._settings, self.base, self.revision, name),
        )

    def prefetch(
        self,
        files: Iterable[File],
        nbytes: int | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Fetches the beginnings of many files at once, 16 at a time.

        `nbytes` of each; by default what its header is likely to take. `progress(done, total)` counts files.

        Raises:
            WeighError: the first failure; the rest is then not asked for.

        """
        remote = [file for file in files if isinstance(file, HubFile)]
        stop = Event()

        def fetch(file: HubFile) -> None:
            if not stop.is_set():
                try:
                    file.prefetch(nbytes or self._head(file.name, len(remote)))
                except BaseException:
                    stop.set()
                    raise

        with ThreadPoolExecutor(_THREADS) as pool:
            tasks = [pool.submit(fetch, file) for file in remote]
            try:
                for done, task in enumerate(as_completed(tasks), start=1):
                    task.result()
                    if progress is not None:
                        progress(done, len(tasks))
            finally:
                stop.set()

    def _head(self, name: str, among: int) -> int:
        """Bytes that the header of one file among so many is likely to take."""
        if name.endswith(".gguf"):
            return HEAD if _LATER_PART.fullmatch(name) else GGUF_HEAD
        if not name.endswith(".safetensors") or among == 1:
            return HEAD
        folder = name.rpartition("/")[0]
        index = self.files.get(f"{folder}/model.safetensors.index.json" if folder else "model.safetensors.index.json")
        if index is None:
            return min(HEAD, max(_BUDGET // among, 16 << 10))
        # A tensor of 40 letters takes 85 bytes of the index and 120 of its shard's header; shards are not all alike.
        return min(max(index * 7 // (4 * among) + 4096, 8 << 10), 1 << 20)


def parse(spec: str) -> tuple[str, str | None, str | None]:
    """(repository, revision, selector) of `org/name[@revision][::selector]`; old names have no org.

    Raises:
        NotFound: not the name of a repository.

    """
    name, _, selector = spec.partition("::")
    repo, at, revision = name.partition("@")
    if not _REPO.fullmatch(repo) or (at and not _REVISION.fullmatch(revision)):
        raise NotFound(f"not a hub id: {name}", fix="the form is org/name or org/name@revision")
    return repo, revision or None, selector or None


def resolve(
    spec: str,
    *,
    file: str | None = None,
    offline: bool = False,
    token: str | None = None,
    client: Client | None = None,
) -> HubRepo | LocalFolder:
    """The repository that `spec` names, `org/name[@revision][::selector]`: from the local cache if all is there.

    `token` is used instead of the environment's. With `offline`, or HF_HUB_OFFLINE, nothing is connected to.

    Raises:
        NotFound: no such repository, revision; or offline and not in the cache.
        Refused: gated or disabled, or a token that the hub does not accept.
        Unreachable: no answer.

    """
    repo, revision, selector = parse(spec)
    own = settings()
    offline = offline or own.offline
    asked = revision or "main"
    snapshot = cached_snapshot(repo, asked, selector=selector, file=file, offline=offline)
    if snapshot is not None:
        return LocalFolder(snapshot, location=spec, base=repo, version=snapshot.name)
    if offline:
        raise why_not_cached(repo, asked, selector=selector, file=file)
    client = client or Client(own.endpoint, token=token or own.token, timeout=own.timeout)
    info = _info(client, own, repo, asked)
    identity, commit, tags = info.get("id"), info.get("sha"), info.get("tags")
    identity = identity if isinstance(identity, str) and _REPO.fullmatch(identity) else repo
    commit = commit if isinstance(commit, str) and _REVISION.fullmatch(commit) else None
    return HubRepo(
        location=spec,
        base=repo,
        id=identity,
        revision=asked,
        version=commit,
        files=_files(info, client, lambda name: _address(own, identity, commit or asked, name)),
        gated=bool(info.get("gated")),
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        client=client,
        _settings=own,
    )


def _address(own: Settings, repo: str, at: str, name: str) -> str:
    return f"{own.endpoint}/{repo}/resolve/{quote(at, safe='')}/{quote(name)}"


def _info(client: Client, own: Settings, repo: str, revision: str) -> dict[str, object]:
    """What the hub says of a repository, with its files' sizes."""
    url = f"{own.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}?blobs=true"
    reply = client.get(url, limit=_LARGEST_INFO, timeout=own.answer_timeout)
    if reply.status != 200:
        raise _refusal(reply, own, repo, revision)
    try:
        info = parse_json(reply.body, "the hub's answer", most=_MOST_VALUES)
    except Malformed:
        info = {}
    if not isinstance(info.get("siblings"), list):
        raise Malformed(
            f"{client.origin} answers with something other than a repository's description",
            fix="check HF_ENDPOINT, and that no login page of the network stands between",
        )
    if info.get("disabled") is True:
        raise _disabled(repo)
    return info


def _files(info: Mapping[str, object], client: Client, address: Callable[[str], str]) -> dict[str, int]:
    """{name: bytes}. A mirror may not tell sizes: those of weights and settings are then asked for one by one."""
    files: dict[str, int] = {}
    unknown: list[str] = []
    siblings = info["siblings"]
    for entry in siblings[:_MOST_FILES] if isinstance(siblings, list) else ():
        name = entry.get("rfilename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _is_inside(name):
            continue
        size = entry.get("size")
        if type(size) is int and size >= 0:
            files[name] = size
        elif name.endswith((".safetensors", ".gguf", ".bin", ".pt", ".pth", ".json")):
            unknown.append(name)
    if unknown:
        with ThreadPoolExecutor(_THREADS) as pool:
            for name, size in zip(unknown, pool.map(lambda name: _size(client, address(name)), unknown), strict=True):
                if size is not None:
                    files[name] = size
    return files


def _size(client: Client, url: str) -> int | None:
    reply = client.get(url, offset=0, limit=1)
    linked = reply.headers.get("x-linked-size", "")
    return reply.size if reply.size is not None else int(linked) if re.fullmatch(r"\d{1,18}", linked) else None


def _is_inside(name: str) -> bool:
    return name.isprintable() and not name.startswith("/") and not {"", ".", ".."} & set(name.split("/"))


def _refusal(reply: Reply, own: Settings, repo: str, revision: str, file: str | None = None) -> WeighError:
    """What a refusing answer means, and what to do about it. The hub tells it in two headers."""
    code, message = reply.headers.get("x-error-code", ""), reply.headers.get("x-error-message", "")[:200]
    if "invalid" in message.lower() and reply.status == 401:
        return Refused(
            "the hub does not accept the token",
            fix=f"HF_TOKEN, or the token file, is wrong or expired: make another at {own.endpoint}/settings/tokens",
        )
    if message.startswith("Access to this resource is disabled"):
        return _disabled(repo)
    if code == "GatedRepo":
        return Refused(
            f"{repo} is gated",
            fix=f"accept its terms at {own.endpoint}/{repo} with your account, then set HF_TOKEN to a token of it",
        )
    if code == "RevisionNotFound":
        return NotFound(f"{repo} has no revision {revision}", fix="check the branch, tag or commit")
    if code == "EntryNotFound":
        return NotFound(f"{repo} has no {file} at {revision}", fix="check the name")
    if code == "RepoNotFound" or reply.status in (401, 404):
        return NotFound(
            f"no such repository, or it is private: {repo}",
            fix="check the name, and set HF_TOKEN to a token that may read it",
        )
    if reply.status == 403:
        return Refused(
            f"the hub forbids reading {repo}{message and f': {message}'}", fix="check what the token may read"
        )
    return Unreachable(f"the hub answers with error {reply.status} for {repo}{message and f': {message}'}")


def _disabled(repo: str) -> Refused:
    return Refused(f"the hub has disabled {repo}", fix="use another repository, or a copy that you have")

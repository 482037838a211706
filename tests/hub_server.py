"""A hub on this machine: two real HTTP servers that speak the hub's endpoints, with its headers and its errors.

`Hub.endpoint` answers as huggingface.co does, and sends large files on to `Hub.storage`, another port, by signed
addresses. Every request is recorded. Faults are queued: each takes effect on the next requests that it matches.
"""

import hashlib
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import parse_qs, unquote, urlsplit


class Zeros:
    """A large file of which only the beginning is worth keeping: the rest is zeros, made when asked for."""

    def __init__(self, head: bytes, size: int) -> None:
        self.head, self.size = head, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.size)
        return self.head[start:stop] + bytes(max(stop - max(start, len(self.head)), 0))


Content = bytes | Zeros


@dataclass
class Repo:
    files: dict[str, Content]
    revisions: tuple[str, ...] = ("main",)
    large: int = 10_000  # files of at least so many bytes lie in storage
    private: bool = False
    gated: bool = False
    disabled: bool = False
    sizes: bool = True  # a mirror may not tell them

    @property
    def sha(self) -> str:
        return hashlib.sha1(json.dumps(sorted((n, len(c)) for n, c in self.files.items())).encode()).hexdigest()


@dataclass(frozen=True)
class Seen:
    server: str
    method: str
    path: str
    range: str | None
    authorization: str | None
    peer: int  # the client's port: one connection, one port
    headers: Mapping[str, str] = field(repr=False)


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path holds `match`, on "hub" or "storage"."""

    server: str
    match: str = ""
    times: int = 1
    status: int = 0  # answer with this instead
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # break off after so many bytes of the body
    drip: float = 0.0  # seconds between a byte and the next
    whole: bool = False  # ignore the range
    drop: bool = False  # close without an answer
    shift: int = 0  # send another range than was asked for


class Hub:
    """Both servers; a context manager."""

    def __init__(self, *, tls: tuple[Path, Path] | None = None) -> None:
        """`tls` is (certificate, key), for both servers."""
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.tokens = {"hf_good": True, "hf_stranger": False}  # token -> whether its account has access
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.sent = 0  # bytes of bodies
        self.signatures_live = True
        self.generation = 0
        self.lock = Lock()
        self._servers = [self._serve(handler, tls) for handler in (_HubHandler, _StorageHandler)]
        scheme = "https" if tls else "http"
        self.endpoint, self.storage = (f"{scheme}://127.0.0.1:{s.server_address[1]}" for s in self._servers)

    def _serve(self, handler: type[BaseHTTPRequestHandler], tls: tuple[Path, Path] | None) -> ThreadingHTTPServer:
        server = _Server(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": self}))
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: Mapping[str, Content], **settings: object) -> Repo:
        repo = self.repos[name] = Repo(dict(files), **settings)  # type: ignore[arg-type]
        return repo

    def expire_signatures(self) -> None:
        self.generation += 1

    def of(self, server: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.server == server]


class Tunnel:
    """A proxy that answers CONNECT by connecting; a context manager. `asked` holds (target, Proxy-Authorization)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self._server = _Server(("127.0.0.1", 0), type("Connect", (_ConnectHandler,), {"tunnel": self}))
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 5
    name = ""
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        # A proxy is asked with the whole address.
        self.path = re.sub(r"^http://[^/]+", "", self.path)
        hub = self.hub
        with hub.lock:
            hub.seen.append(
                Seen(
                    self.name,
                    self.command,
                    self.path,
                    self.headers["Range"],
                    self.headers["Authorization"],
                    self.client_address[1],
                    {name.lower(): value for name, value in self.headers.items()},
                )
            )
            fault = next((f for f in hub.faults if f.server == self.name and f.match in self.path and f.times), None)
            if fault:
                fault.times -= 1
        self.fault = fault or Fault(self.name)
        if self.fault.drop:
            self.close_connection = True
        elif self.fault.status:
            self.answer(self.fault.status, {"Content-Length": "0", **self.fault.headers})
        else:
            self.serve()

    def serve(self) -> None:
        raise NotImplementedError

    def answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.cut is not None:
            body, self.close_connection = body[: self.fault.cut], True
        if self.fault.drip:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(self.fault.drip)
        else:
            self.wfile.write(body)
        with self.hub.lock:
            self.hub.sent += len(body)

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        body = json.dumps({"error": message or code}).encode()
        headers = {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": str(len(body))}
        self.answer(status, {name: value for name, value in headers.items() if value}, body)

    def content(self, content: Content, headers: Mapping[str, str]) -> None:
        size = len(content)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if match is None or self.fault.whole:
            headers = {**headers, "Content-Length": str(size)}
            if not isinstance(content, Zeros):
                self.answer(200, headers, content[:])
                return
            self.answer(200, headers)
            at = 0
            while at < size and self.command == "GET":  # until the client has enough
                part = content[at : at + 65536]
                self.wfile.write(part)
                at += len(part)
                with self.hub.lock:
                    self.hub.sent += len(part)
            return
        start, last = int(match[1]) + self.fault.shift, min(int(match[2]) + self.fault.shift, size - 1)
        if start >= size:
            self.answer(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        headers = {**headers, "Content-Range": f"bytes {start}-{last}/{size}", "Content-Length": str(last - start + 1)}
        self.answer(206, headers, content[start : last + 1])


class _ConnectHandler(BaseHTTPRequestHandler):
    tunnel: Tunnel

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.tunnel.asked.append((self.path, self.headers["Proxy-Authorization"]))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as far:
            self.send_response(200)
            self.end_headers()
            there = Thread(target=_pour, args=(self.connection, far), daemon=True)
            there.start()
            _pour(far, self.connection)
            there.join(timeout=5)


def _pour(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class _HubHandler(_Handler):
    name = "hub"

    def serve(self) -> None:
        path = urlsplit(self.path).path
        for form, act in (
            (r"/api/models/(?P<repo>.+?)/tree/(?P<revision>[^/]+)", self.tree),
            (r"/api/models/(?P<repo>.+?)(?:/revision/(?P<revision>[^/]+))?", self.info),
            (r"/(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self.resolve),
        ):
            match = re.fullmatch(form, path)
            if match:
                self.find(match, act)
                return
        self.refuse(404, "", "Not Found")

    def find(self, match: re.Match[str], act: Callable[..., None]) -> None:
        """The hub's own order: token, repository, access, revision."""
        hub, name = self.hub, match["repo"]
        if name in hub.renamed:
            self.answer(307, {"Location": self.path.replace(name, hub.renamed[name], 1), "Content-Length": "0"})
            return
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if token and token not in hub.tokens:
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return
        repo = hub.repos.get(name)
        if repo is None or (repo.private and not hub.tokens.get(token)):
            self.refuse(401 if not token else 404, "RepoNotFound", "Repository not found")
            return
        if repo.disabled:
            self.refuse(403, "", "Access to this resource is disabled.")
            return
        revision = unquote(match["revision"] or "main")
        if revision not in (*repo.revisions, repo.sha):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        if repo.gated and act == self.resolve and not hub.tokens.get(token):
            self.refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
            return
        act(repo, name, match.groupdict().get("file"))

    def info(self, repo: Repo, name: str, _: None) -> None:
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [
            {"rfilename": file, "size": len(content), "blobId": _etag(content)}
            if blobs and repo.sizes
            else {"rfilename": file}
            for file, content in repo.files.items()
        ]
        found = {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": repo.sha,
            "private": repo.private,
            "siblings": siblings,
        }
        found |= {"gated": "manual" if repo.gated else False, "disabled": repo.disabled, "tags": ["safetensors"]}
        self.json(found)

    def tree(self, repo: Repo, name: str, _: None) -> None:
        entries: list[dict[str, object]] = []
        for file, content in repo.files.items():
            entry: dict[str, object] = {"type": "file", "path": file, "size": len(content), "oid": _etag(content)[:40]}
            if len(content) >= repo.large:
                entry["lfs"] = {"oid": _etag(content), "size": len(content), "pointerSize": 135}
            entries.append(entry)
        self.json(entries)

    def json(self, found: object) -> None:
        body = json.dumps(found).encode()
        self.answer(200, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    def resolve(self, repo: Repo, name: str, file: str) -> None:
        file = unquote(file)
        headers = {"X-Repo-Commit": repo.sha, "Accept-Ranges": "bytes"}
        if file not in repo.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        content = repo.files[file]
        if len(content) < repo.large:
            self.content(content, {**headers, "ETag": f'"{_etag(content)}"'})
            return
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{_etag(content)}"', "Content-Length": "0"}
        target = f"{self.hub.storage}/{name}/{file}?Signature={self.hub.generation}&secret=x%2By"
        self.answer(302, {**headers, "Location": target})


class _StorageHandler(_Handler):
    name = "storage"

    def serve(self) -> None:
        parts = urlsplit(self.path)
        if parse_qs(parts.query).get("Signature") != [str(self.hub.generation)]:
            self.answer(403, {"Content-Length": "0"})
            return
        name = next(name for name in self.hub.repos if parts.path.startswith(f"/{name}/"))
        content = self.hub.repos[name].files[unquote(parts.path.removeprefix(f"/{name}/"))]
        self.content(content, {"ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"})


def _etag(content: Content) -> str:
    return hashlib.sha256(content[:1_000_000] + str(len(content)).encode()).hexdigest()


def safetensors_file(tensors: Mapping[str, tuple[int, ...]]) -> Zeros:
    """A BF16 safetensors file of zeros, as safetensors writes it."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Zeros(len(text).to_bytes(8, "little") + text, 8 + len(text) + at)

"""A small HTTP client: ranges, redirects, retries, bounded bodies, and a token that goes to one origin only.

The standard library's `http.client` underneath: connections are kept alive and shared between threads.
"""

import http.client
import os
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from weighbridge.ledger.errors import Malformed, Refused, Truncated, Unreachable

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_TEMPORARY = (408, 429, 500, 502, 503, 504)
_CHUNK = 1 << 16
_SLOWEST = 8192  # bytes a second, on average over a body: less is as good as no answer
_LONGEST_SKIP = 8 << 20  # what is read for nothing when a server ignores ranges
_LARGEST_REFUSAL = 1 << 16
_IDLE_PER_ORIGIN = 16
_DROPPED = (http.client.HTTPException, OSError)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_RATE_LIMIT = re.compile(r'"[^"]*"\s*;\s*r=0\s*;\s*t=(\d{1,9})')  # IETF draft ratelimit-headers-09, as the hub sends it

Origin = tuple[str, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: success, or a refusal (400 to 499) whose meaning is the caller's to tell.

    `headers` have lower-case names; those beginning with x- include the redirects'. `size` is the whole resource's.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    size: int | None


class _Cut(Exception):
    """A body that ended before its time; `body` is what came."""

    def __init__(self, why: str, body: bytes) -> None:
        super().__init__(why)
        self.body = body


class Client:
    """Asks one endpoint, and the hosts it redirects to.

    `token` is sent to the endpoint's own scheme, host and port, and never follows a redirect elsewhere.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None = None,
        timeout: float = 10.0,
        attempts: int = 5,
        patience: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`timeout` is seconds without a byte; `patience` the longest wait that a busy server may ask for.

        Raises:
            Refused: an endpoint that is no http or https address, or a token with characters that no token has.
        """
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise Refused("the token holds spaces or control characters", fix="copy it again, without them")
        self.origin = _origin(_split(endpoint))
        self.timeout, self.attempts, self.patience = timeout, attempts, patience
        self.requests = self.received = 0  # requests sent, body bytes received
        self._token = token
        self._sleep = sleep
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[http.client.HTTPConnection]] = defaultdict(list)
        self._context = None

    def __repr__(self) -> str:
        return f"Client({_place(self.origin)!r})"

    def close(self) -> None:
        """Closes what is kept alive; the client may still be used."""
        with self._lock:
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def __del__(self) -> None:
        if hasattr(self, "_idle"):
            self.close()

    def get(self, url: str, *, limit: int, offset: int | None = None, timeout: float | None = None) -> Reply:
        """A whole resource of at most `limit` bytes; with `offset`, the `limit` bytes from there, or up to its end.

        Raises:
            Unreachable: no answer, after all attempts.
            Truncated: the body kept ending early.
            Malformed: an answer against the protocol, or a body larger than `limit`.
            Refused: a redirect to somewhere unsafe, or a server that cannot send parts of a large file.
        """
        body, failures = b"", 0
        while True:
            try:
                start = None if offset is None else offset + len(body)
                reply = self._follow(url, start, limit - len(body), timeout or self.timeout)
            except _Cut as cut:
                # What came is kept: the next request asks for the rest. Progress buys another attempt.
                body += cut.body if offset is not None else b""
                failures = 1 if cut.body and offset is not None else failures + 1
                if failures >= self.attempts:
                    raise Truncated(
                        f"{_place(_origin(_split(url)))} kept breaking off ({cut})", fix="try again later"
                    ) from None
                self._sleep(_backoff(failures))
                continue
            except _DROPPED as error:
                failures += 1
                if failures >= self.attempts or not _may_pass(error):
                    raise _unreachable(url, error) from None
                self._sleep(_backoff(failures))
                continue
            if reply.status in _TEMPORARY:
                failures += 1
                self._sleep(self._wait(reply, failures))
                continue
            return Reply(
                status=reply.status, headers=reply.headers, body=body + reply.body, url=reply.url, size=reply.size
            )

    def _wait(self, reply: Reply, failures: int) -> float:
        """Seconds until a busy server may be asked again; raises when that is never, or too long."""
        host, busy = _place(_origin(_split(reply.url))), reply.status == 429
        asked = _retry_after(reply.headers)
        if busy and asked is not None and asked > self.patience:
            raise Unreachable(f"{host} asks for a pause of {asked:.0f} s: too many requests", fix="try again then")
        if failures >= self.attempts:
            why = "too many requests" if busy else f"error {reply.status}"
            raise Unreachable(f"{host} does not answer ({why}, {failures} times)", fix="try again later")
        return min(asked, self.patience) if asked is not None else _backoff(failures)

    def _follow(self, url: str, start: int | None, length: int, timeout: float) -> Reply:
        """One request and its redirects."""
        carried: dict[str, str] = {}
        trusted = True
        for _ in range(_MOST_REDIRECTS + 1):
            parts = _split(url)
            trusted = trusted and _origin(parts) == self.origin
            reply = self._once(parts, start, length, timeout, trusted=trusted)
            if reply.status not in _REDIRECTS:
                return Reply(
                    status=reply.status,
                    headers={**carried, **reply.headers},
                    body=reply.body,
                    url=url,
                    size=reply.size,
                )
            carried |= {name: value for name, value in reply.headers.items() if name.startswith("x-")}
            if "location" not in reply.headers:
                raise Malformed(f"{_place(_origin(parts))} redirects to nowhere")
            target = urljoin(url, reply.headers["location"])
            if parts.scheme == "https" and _split(target).scheme != "https":
                raise Refused(f"{_place(_origin(parts))} redirects to an unencrypted address", fix="do not trust it")
            url = target
        raise Malformed(f"{_place(self.origin)} redirects more than {_MOST_REDIRECTS} times", fix="check HF_ENDPOINT")

    def _once(self, parts: SplitResult, start: int | None, length: int, timeout: float, *, trusted: bool) -> Reply:
        headers = {"User-Agent": _agent(), "Accept-Encoding": "identity"}
        if start is not None:
            headers["Range"] = f"bytes={start}-{start + length - 1}"
        if trusted and self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection, answer = self._send(parts, headers, timeout)
        done = False
        try:
            reply = self._receive(answer, parts.geturl(), start, length, timeout)
            done = True
            return reply
        finally:
            # A body that was not read to its end would be taken for the next answer.
            if done and answer.isclosed() and not answer.will_close:
                self._keep(_origin(parts), connection)
            else:
                answer.close()
                connection.close()

    def _send(
        self, parts: SplitResult, headers: Mapping[str, str], timeout: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        origin = _origin(parts)
        target = quote(parts.path or "/", safe="%/:=&?~#+!$,;'@()*[]") + (
            "?" + quote(parts.query, safe="%/:=&?~#+!$,;'@()*[]") if parts.query else ""
        )
        while True:
            with self._lock:
                kept = self._idle[origin].pop() if self._idle[origin] else None
                self.requests += 1
            connection, prefix, extra = (kept, "", {}) if kept else self._connect(origin, timeout)
            if not kept and prefix:
                connection.absolute = (prefix, extra)  # type: ignore[attr-defined]
            prefix, extra = getattr(connection, "absolute", ("", {}))
            try:
                if connection.sock is not None:
                    connection.sock.settimeout(timeout)
                connection.request("GET", prefix + target, headers={**headers, **extra})
                return connection, connection.getresponse()
            except BaseException as error:
                connection.close()
                # A kept connection that the server has closed meanwhile says nothing about the server.
                if not kept or isinstance(error, TimeoutError) or not isinstance(error, _DROPPED):
                    raise

"""A small HTTP client: ranges, redirects, retries, bounded bodies, and a token that goes to one origin only."""

import http.client
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from weighbridge.formats.connections import DROPPED, Connections, join, origin, split
from weighbridge.ledger.errors import Malformed, Refused, Truncated, Unreachable, WeighError

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_TEMPORARY = (408, 429, 500, 502, 503, 504)
_CHUNK = 1 << 16
_SLOWEST = 8192  # bytes a second over a whole body: less is as good as no answer
_LONGEST_SKIP = 8 << 20  # what is read for nothing where a server ignores ranges
_LARGEST_REFUSAL = 1 << 16
_PROGRESS = 1 << 20  # a broken body that brought so much does not count as a failure
_OFFLINE = "check the network; --offline uses the local cache"
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)")
# IETF draft-ietf-httpapi-ratelimit-headers-09, as the hub sends it: "api";r=<requests left>;t=<seconds>
_RATE_LIMIT = re.compile(r'"[^"]*"\s*;\s*r=0\s*;\s*t=(\d{1,9})')


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: success, or a refusal (400 to 499) whose meaning is the caller's to tell.

    `headers` have lower-case names; those that begin with x- include the redirects'. `url` is where the redirects led.
    `size` is that of the whole resource, where the server says it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    size: int | None


class _Cut(Exception):
    """A body that ended before its time; `body` is what came of it."""

    def __init__(self, why: str, body: bytes) -> None:
        super().__init__(why)
        self.body = body


class Client:
    """Asks one endpoint, and the hosts it redirects to.

    The token is sent to the endpoint's own scheme, host and port, and never follows a redirect elsewhere.
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
        """`timeout` is seconds without a byte; `patience` the longest pause that a busy server may ask for.

        Raises:
            Refused: an endpoint that is no http or https address, or a token with characters that no token has.

        """
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise Refused("the token holds spaces or control characters", fix="copy it again, without them")
        self.origin = origin(split(endpoint))
        self.timeout, self.attempts, self.patience = timeout, attempts, patience
        self.requests = self.received = 0  # requests sent, bytes of bodies received
        self._token = token
        self._sleep = sleep
        self._connections = Connections()
        self._counting = threading.Lock()

    def __repr__(self) -> str:
        return f"Client({str(self.origin)!r})"

    def close(self) -> None:
        """Closes what is kept alive; the client can still be used."""
        self._connections.close()

    def __del__(self) -> None:
        if hasattr(self, "_connections"):
            self.close()

    def get(
        self,
        url: str,
        *,
        limit: int,
        offset: int | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """A whole resource of at most `limit` bytes; with `offset`, the `limit` bytes from there or up to its end.

        `timeout` is for this request, instead of the client's own.

        Raises:
            Unreachable: no answer in all attempts, or not in time.
            Truncated: the body kept breaking off.
            Malformed: an answer against the protocol, or a body of more than `limit` bytes.
            Refused: a redirect to somewhere unsafe, or a server that cannot send a part from deep within a file.

        """
        timeout = timeout or self.timeout
        body, failures = b"", 0
        while True:
            start = None if offset is None else offset + len(body)
            try:
                reply = self._follow(url, start=start, length=limit - len(body), timeout=timeout)
            except _Cut as cut:
                # What came is kept: the next request asks for the rest.
                body += b"" if offset is None else cut.body
                failures = failures + 1 if offset is None or len(cut.body) < _PROGRESS else 1
                if failures >= self.attempts:
                    raise Truncated(f"{_host(url)}: the answer keeps breaking off ({cut})", fix=_OFFLINE) from None
                self._sleep(_backoff(failures))
                continue
            except DROPPED as error:
                failures += 2 if isinstance(error, TimeoutError) else 1
                if failures >= self.attempts or not _may_pass(error):
                    raise _unreachable(url, error, timeout) from None
                self._sleep(_backoff(failures))
                continue
            if reply.status in _TEMPORARY:
                failures += 1
                self._sleep(self._pause(reply, failures))
                continue
            body += reply.body
            # A server may send less than was asked for; the rest is asked for again.
            short = reply.status == 206 and len(body) < limit and offset is not None
            if not short or reply.size is None or start is None or start + len(reply.body) >= reply.size:
                return replace(reply, body=body)

    def _pause(self, reply: Reply, failures: int) -> float:
        """Seconds until a busy server may be asked again; raises when it is too long, or has been too often."""
        why = "too many requests" if reply.status == 429 else f"error {reply.status}"
        asked = _retry_after(reply.headers)
        if asked is not None and asked > self.patience:
            raise Unreachable(
                f"{_host(reply.url)} answers with {why} and asks for a pause of {asked:.0f} s",
                fix="try again then; --offline uses the local cache",
            )
        if failures >= self.attempts:
            again = f", and asks for another {asked:.0f} s" if asked else ""
            raise Unreachable(
                f"{_host(reply.url)} answered {failures} times with {why}{again}",
                fix="try again later; --offline uses the local cache",
            )
        return _backoff(failures) if asked is None else asked

    def _follow(self, url: str, *, start: int | None, length: int, timeout: float) -> Reply:
        """One request and its redirects."""
        carried: dict[str, str] = {}
        trusted = True
        for _ in range(_MOST_REDIRECTS + 1):
            trusted = trusted and origin(split(url)) == self.origin
            reply = self._once(url, start=start, length=length, timeout=timeout, trusted=trusted)
            if reply.status not in _REDIRECTS:
                return replace(reply, headers={**carried, **reply.headers})
            carried |= {name: value for name, value in reply.headers.items() if name.startswith("x-")}
            if "location" not in reply.headers:
                raise Malformed(f"{_host(url)} redirects to nowhere", fix="check HF_ENDPOINT")
            target = join(url, reply.headers["location"])
            if self.origin.scheme == "https" and target.scheme != "https":
                raise Refused(f"{_host(url)} redirects to an unencrypted address", fix="do not trust this network")
            url = target.geturl()
        raise Malformed(f"{self.origin} redirects more than {_MOST_REDIRECTS} times", fix="check HF_ENDPOINT")

    def _once(self, url: str, *, start: int | None, length: int, timeout: float, trusted: bool) -> Reply:
        headers = {"User-Agent": "weighbridge", "Accept-Encoding": "identity"}
        if start is not None:
            headers["Range"] = f"bytes={start}-{start + length - 1}"
        if trusted and self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        parts = split(url)
        link, answer = self._connections.get(parts, headers, timeout)
        whole = False
        try:
            with self._counting:
                self.requests += 1
            reply, whole = self._receive(answer, url, start=start, length=length, timeout=timeout)
            return reply
        finally:
            answer.close()
            # What is left of a body would be taken for the next answer.
            if whole and not answer.will_close:
                self._connections.keep(origin(parts), link)
            else:
                link.connection.close()

    def _receive(
        self, answer: http.client.HTTPResponse, url: str, *, start: int | None, length: int, timeout: float
    ) -> tuple[Reply, bool]:
        """The reply, and whether the connection has nothing left of it."""
        status, announced = answer.status, answer.length
        headers = {name.lower(): value for name, value in answer.getheaders()}
        size = announced if status == 200 else None
        skip, wanted = 0, _LARGEST_REFUSAL
        if status == 206 and start is not None:
            wanted, size = _sent_range(headers.get("content-range", ""), url, start=start, length=length)
        elif status == 206 or headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise Malformed(f"{_host(url)} sends what was not asked for", fix="check HF_ENDPOINT and the proxy")
        elif status == 200 and start is not None:
            if start > _LONGEST_SKIP:
                raise Refused(
                    f"{_host(url)} sends files only whole, and byte {start:,} of this one is needed",
                    fix="download the model and give its folder",
                )
            skip, wanted = start, start + length
        elif status == 200:
            wanted = length + 1
            if announced is not None and announced > length:
                raise Malformed(f"{_host(url)} sends {announced:,} bytes where at most {length:,} make sense")
        body, whole = self._read(answer, announced, url, wanted=wanted, skip=skip, timeout=timeout)
        if status == 200 and start is None and len(body) > length:
            raise Malformed(f"{_host(url)} sends more than the {length:,} bytes that make sense")
        if (status == 206 and len(body) != wanted) or (not whole and len(body) + skip < wanted):
            raise _Cut("fewer bytes than announced", body)
        return Reply(status=status, headers=headers, body=body, url=url, size=size), whole

    def _read(
        self,
        answer: http.client.HTTPResponse,
        announced: int | None,
        url: str,
        *,
        wanted: int,
        skip: int,
        timeout: float,
    ) -> tuple[bytes, bool]:
        """Up to `wanted` bytes less the first `skip`, and whether they were the whole body."""
        began = time.monotonic()
        body = bytearray()
        try:
            while len(body) < wanted and len(body) != announced:
                # http.client forgets to count down in read1 (before 3.12.2), so the bound is kept here.
                most = wanted - len(body) if announced is None else min(wanted, announced) - len(body)
                part = answer.read1(min(most, _CHUNK))
                if not part:
                    return bytes(body[skip:]), announced is None
                body += part
                with self._counting:
                    self.received += len(part)
                if time.monotonic() - began > 2 * timeout + len(body) / _SLOWEST:
                    raise Unreachable(f"{_host(url)} sends too slowly to wait for", fix=_OFFLINE)
        except DROPPED as error:
            raise _Cut(type(error).__name__, bytes(body[skip:])) from None
        return bytes(body[skip:]), len(body) == announced


def _sent_range(stated: str, url: str, *, start: int, length: int) -> tuple[int, int | None]:
    """(bytes in the body, size of the whole) of a 206 answer's Content-Range."""
    match = _CONTENT_RANGE.fullmatch(stated)
    if match is None or match[1] is None or int(match[1]) != start or not start <= int(match[2]) < start + length:
        raise Malformed(f"{_host(url)} sends other bytes than were asked for", fix="check HF_ENDPOINT and the proxy")
    return int(match[2]) - start + 1, None if match[3] == "*" else int(match[3])


def _retry_after(headers: Mapping[str, str]) -> float | None:
    stated = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", stated):
        return float(stated)
    if stated:
        from email.utils import parsedate_to_datetime

        try:
            return max(parsedate_to_datetime(stated).timestamp() - time.time(), 0.0)
        except (ValueError, OverflowError):
            return None
    limit = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None


def _backoff(failures: int) -> float:
    # Spread, so that sixteen threads do not come back at once.
    return min(0.5 * 2 ** (failures - 1), 8.0) * random.uniform(0.75, 1.25)


def _host(url: str) -> str:
    """Whom to name in a message: never the path and query, which may be signed."""
    return str(origin(split(url)))


def _may_pass(error: Exception) -> bool:
    import socket
    import ssl

    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, ssl.SSLError):
        return isinstance(error, ssl.SSLEOFError)
    refused_by_proxy = str(error).startswith("Tunnel connection failed: 4")
    return not isinstance(error, ConnectionRefusedError | http.client.InvalidURL) and not refused_by_proxy


def _unreachable(url: str, error: Exception, timeout: float) -> WeighError:
    import socket
    import ssl

    host = _host(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(
            f"the certificate of {host} is not trusted here ({error.verify_message})",
            fix="set SSL_CERT_FILE to the certificates of your network",
        )
    if isinstance(error, socket.gaierror):
        why = "its name cannot be resolved"
    elif isinstance(error, ConnectionRefusedError):
        why = "connection refused"
    elif isinstance(error, TimeoutError):
        why = f"nothing within {timeout:g} s"
    else:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Unreachable(f"{host} cannot be reached: {why}", fix=_OFFLINE)

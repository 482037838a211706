"""Connections that are kept alive and shared between threads, straight or through the proxies of the environment."""

import http.client
import os
import re
import socket
import threading
from base64 import b64encode
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from weighbridge.ledger.errors import Refused

if TYPE_CHECKING:
    import ssl

DROPPED = (http.client.HTTPException, OSError)
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?!.{254})[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?|[0-9a-f:.]+:[0-9a-f:.]*", re.IGNORECASE)
_UNQUOTED = "%/:=&?~#+!$,;'@()*[]"
_MOST_IDLE = 16  # per origin


class Origin(NamedTuple):
    """Whom one talks to."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"


def split(url: str | bytes) -> SplitResult:
    """An http or https address in its parts.

    Raises:
        Refused: it is none. It is not repeated, for addresses carry passwords and signatures.

    """
    try:
        parts = urlsplit(quote(url, safe=_UNQUOTED))
        if parts.scheme in _PORTS and _HOST.fullmatch(parts.hostname or "") and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise Refused("not an http or https address, or one with a strange host", fix="check HF_ENDPOINT")


def join(url: str, location: str) -> SplitResult:
    """Where a redirect leads. `location` is a header, which http.client reads as Latin-1: its bytes are meant.

    Raises:
        Refused: not to an http or https address.

    """
    try:
        return split(urljoin(url, location).encode("latin-1", "replace"))
    except ValueError:
        raise Refused("a redirect to no address", fix="check HF_ENDPOINT") from None


def origin(parts: SplitResult) -> Origin:
    """Scheme, host and port."""
    return Origin(parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS[parts.scheme])


class Link(NamedTuple):
    """A connection, and what a proxy wants in each request: the address before the path, and a password."""

    connection: http.client.HTTPConnection
    prefix: str
    headers: Mapping[str, str]


def _answered(connection: http.client.HTTPConnection, deadline: float) -> http.client.HTTPResponse:
    """The head of an answer, all of it within `deadline` seconds: a socket's timeout is for each byte anew."""
    late = threading.Event()

    def end() -> None:
        late.set()
        if connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline, end)
    timer.daemon = True
    timer.start()
    try:
        answer = connection.getresponse()
    except Exception:
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    if late.is_set():  # a head that was cut short can pass for a whole one
        raise TimeoutError
    return answer


class Connections:
    """A pool, by origin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[Link]] = defaultdict(list)
        self._tls: ssl.SSLContext | None = None

    def get(
        self, parts: SplitResult, headers: Mapping[str, str], timeout: float
    ) -> tuple[Link, http.client.HTTPResponse]:
        """Sends a GET and reads the answer's head. The body is the caller's, then `keep` or `drop`."""
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            with self._lock:
                idle = self._idle[origin(parts)]
                kept = idle.pop() if idle else None
            link = kept or self._open(origin(parts), timeout)
            try:
                if link.connection.sock is not None:
                    link.connection.sock.settimeout(timeout)
                link.connection.request("GET", link.prefix + target, headers={**headers, **link.headers})
                return link, _answered(link.connection, 3 * timeout)
            except BaseException as error:
                link.connection.close()
                # A kept connection that was closed meanwhile says nothing: the next one may, or a fresh one will.
                if kept is None or isinstance(error, TimeoutError) or not isinstance(error, DROPPED):
                    raise

    def keep(self, whom: Origin, link: Link) -> None:
        """Gives a connection back for the next request."""
        with self._lock:
            if len(self._idle[whom]) < _MOST_IDLE:
                self._idle[whom].append(link)
                return
        link.connection.close()

    def close(self) -> None:
        """Closes those that wait for a next request."""
        with self._lock:
            links = [link for idle in self._idle.values() for link in idle]
            self._idle.clear()
        for link in links:
            link.connection.close()

    def _open(self, whom: Origin, timeout: float) -> Link:
        proxy = _proxy(whom)
        near = origin(proxy) if proxy else whom
        if whom.scheme == "http":
            connection = http.client.HTTPConnection(near.host, near.port, timeout=timeout)
        else:
            connection = http.client.HTTPSConnection(near.host, near.port, timeout=timeout, context=self._context())
        if proxy is None:
            return Link(connection, "", {})
        headers = _credentials(proxy)
        if whom.scheme == "http":
            host = f"[{whom.host}]" if ":" in whom.host else whom.host
            return Link(connection, f"http://{host}:{whom.port}", headers)
        connection.set_tunnel(whom.host, whom.port, headers=headers)
        return Link(connection, "", {})

    def _context(self) -> "ssl.SSLContext":
        import ssl

        with self._lock:
            if self._tls is None:
                # SSL_CERT_FILE is OpenSSL's own; the others are what people set for requests and curl.
                own = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
                use = own if own and os.path.isfile(own) and "SSL_CERT_FILE" not in os.environ else None
                self._tls = ssl.create_default_context(cafile=use)
            return self._tls


def _proxy(whom: Origin) -> SplitResult | None:
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    address = proxies.get(whom.scheme) or proxies.get("all")
    if not address or proxy_bypass(f"{whom.host}:{whom.port}"):
        return None
    scheme, mark, _ = address.partition("://")
    if mark and scheme.lower() != "http":
        raise Refused(
            f"the {whom.scheme} proxy of the environment speaks {scheme[:10]}, only http is spoken here",
            fix=f"set {whom.scheme.upper()}_PROXY to an http:// address",
        )
    try:
        return split(address if mark else f"http://{address}")
    except Refused:
        raise Refused(
            f"the {whom.scheme} proxy of the environment is not an address", fix=f"check {whom.scheme.upper()}_PROXY"
        ) from None


def _credentials(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(pair.encode()).decode()}"}

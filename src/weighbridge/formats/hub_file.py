"""A file on the hub, read by ranges: a header costs one request, a long one a few."""

import threading
from collections.abc import Callable

from weighbridge.formats.http import Client, Reply
from weighbridge.ledger.errors import Malformed, WeighError

HEAD = 128 << 10  # of any file: safetensors headers are rarely longer
GGUF_HEAD = 1 << 20  # vocabularies stand in the header: 0.7 MB for 32,000 tokens, 10 MB for 262,144
_LEAST = 64 << 10
_MOST_AHEAD = 4 << 20
_LARGEST_KEPT = 16 << 20
_MOST_KEPT = 4


class HubFile:
    """A file at an address that may redirect. Reading forward reads ahead, twice as far each time."""

    __slots__ = ("_address", "_ahead", "_blocks", "_client", "_head", "_led_to", "_lock", "_refusal", "name", "size")

    def __init__(
        self, name: str, *, size: int, address: str, client: Client, refusal: Callable[[Reply], WeighError]
    ) -> None:
        """`refusal` says what a refusing answer means."""
        self.name, self.size = name, size
        self._client, self._address, self._refusal = client, address, refusal
        self._led_to = address  # where the address redirected last time: a signed one, for a while
        self._head = self._ahead = GGUF_HEAD if name.endswith(".gguf") else HEAD
        self._blocks: list[tuple[int, bytes]] = []  # (offset, bytes), the latest first
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"HubFile({self.name!r})"

    def read(self, offset: int, length: int, /) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file.

        Raises:
            WeighError: the hub cannot be reached, or refuses.

        """
        end = min(offset + length, self.size)
        parts: list[bytes] = []
        while offset < end:
            part = self._kept(offset, end) or self._fetch(offset, end)
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def prefetch(self, nbytes: int | None = None) -> None:
        """Fetches the first `nbytes` bytes, so that reading them later costs nothing."""
        if nbytes is not None:
            self._head = self._ahead = nbytes
        self.read(0, 1)

    def _kept(self, offset: int, end: int) -> bytes:
        with self._lock:
            blocks = list(self._blocks)
        for start, data in blocks:
            if start <= offset < start + len(data):
                return data[offset - start : end - start]
        return b""

    def _fetch(self, offset: int, end: int) -> bytes:
        with self._lock:
            last = self._blocks[0][0] + len(self._blocks[0][1]) if self._blocks else None
            if last is not None and 0 <= offset - last <= self._ahead:
                self._ahead = min(self._ahead * 2, _MOST_AHEAD)
                ahead = self._ahead
            else:
                ahead = self._head if offset == 0 else _LEAST
        length = min(max(end - offset, ahead), self.size - offset)
        data = self._get(offset, length)
        if len(data) != length:
            raise Malformed(f"{self.name} ends before the {self.size:,} bytes that the hub lists", fix="try again")
        if length <= _LARGEST_KEPT:
            with self._lock:
                self._blocks = [(offset, data), *self._blocks[: _MOST_KEPT - 1]]
        return data if length <= end - offset else data[: end - offset]

    def _get(self, offset: int, length: int) -> bytes:
        reply = self._client.get(self._led_to, offset=offset, limit=length)
        if reply.status >= 400 and self._led_to != self._address:
            # A signed address lives for an hour or so: a new one is asked for.
            reply = self._client.get(self._address, offset=offset, limit=length)
        if reply.status >= 400:
            raise self._refusal(reply)
        self._led_to = reply.url
        if reply.size is not None and reply.size != self.size:
            raise Malformed(
                f"{self.name} has {reply.size:,} bytes, the hub lists {self.size:,}",
                fix="try again: it may have changed",
            )
        return reply.body

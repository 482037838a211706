"""Zstandard frames, by the `zstandard` package."""

from weighbridge.ledger.errors import Malformed, Refused

_PIECE = 1 << 20


def decompressed(raw: bytes, name: str, *, most: int) -> bytes:
    """What a frame holds.

    Raises:
        Refused: the package is not installed.
        Malformed: no such frame, or one that holds more than `most` bytes.
    """
    try:
        import zstandard
    except ImportError:
        raise Refused(f"{name} is compressed by Zstandard", fix="pip install 'weighbridge[orbax]'") from None
    stream = zstandard.ZstdDecompressor(max_window_size=most).stream_reader(raw)
    found = bytearray()
    try:
        while piece := stream.read(_PIECE):
            found += piece
            if len(found) > most:
                raise Malformed(f"{name} holds more than {most:,} bytes")
    except zstandard.ZstdError as error:
        raise Malformed(f"{name} is broken: {str(error)[:80]}", fix="download it again") from None
    return bytes(found)

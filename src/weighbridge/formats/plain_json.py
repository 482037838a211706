"""JSON from strangers: an object, of bounded size, before anything is made of it."""

import json

import msgspec

from weighbridge.ledger.errors import Malformed

_MARK = b"\xef\xbb\xbf"  # a byte-order mark, which some editors put first
_MOST_VALUES = 600_000  # a value takes some 100 bytes once decoded; the largest real config.json has 45,000


def parse_json(raw: bytes, name: str, *, most: int = _MOST_VALUES) -> dict[str, object]:
    """The object in a JSON file of at most `most` values.

    Raises:
        Malformed: not JSON, not an object, or one with more values than any real file.
    """
    raw = raw.removeprefix(_MARK)
    if raw.count(b",") + raw.count(b"{") + raw.count(b"[") > most:
        raise Malformed(f"{name} holds more values than any real one")
    try:
        # Configs of the hub hold NaN and Infinity, which the standard library reads and msgspec does not.
        value = json.loads(raw) if b"NaN" in raw or b"Infinity" in raw else msgspec.json.decode(raw)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{name} is not JSON ({str(error)[:200]})", fix="download it again") from None
    if not isinstance(value, dict):
        raise Malformed(f"{name} holds no JSON object")
    return value

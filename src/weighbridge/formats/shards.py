"""Several files that hold one model: read together, checked against their index."""

from collections.abc import Mapping, Sequence

import msgspec

from weighbridge.formats.header import Header
from weighbridge.ledger import Rows, Stated
from weighbridge.ledger.errors import Malformed, NotFound

LARGEST_INDEX = 64_000_000  # Kimi-K2, with 140,000 tensors, takes 13 MB
_MOST_NAMES = 400_000


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def listed(raw: bytes, name: str) -> dict[str, str]:
    """The index's {tensor: shard}, shards as it names them: relative to its own folder.

    Raises:
        Malformed: not an index, or one that points outside its folder.

    """
    if raw.count(b",") > _MOST_NAMES:
        raise Malformed(f"{name} lists more tensors than any real model has")
    try:
        weight_map = msgspec.json.decode(raw, type=_Index).weight_map
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{name} is not an index of shards ({error})", fix="download it again") from None
    if not weight_map:
        raise Malformed(f"{name} lists no tensor", fix="download it again")
    for shard in set(weight_map.values()):
        if shard.startswith("/") or ".." in shard.split("/") or "\\" in shard or ":" in shard:
            raise Malformed(f"{name} points outside its folder: {shard!r}", fix="do not trust this model")
    return weight_map


def shards_of(raw: bytes, name: str, present: Mapping[str, int]) -> dict[str, str]:
    """The index's {tensor: shard}, shards by their names among `present`.

    Raises:
        Malformed: not an index, or one that points outside its folder.
        NotFound: shards that are not there.

    """
    weight_map = listed(raw, name)
    folder = name.rpartition("/")[0]
    if folder:
        weight_map = {tensor: f"{folder}/{shard}" for tensor, shard in weight_map.items()}
    missing = sorted(set(weight_map.values()) - present.keys())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise NotFound(f"{name} lists shards that are not there: {', '.join(missing[:3])}{more}", fix="download them")
    return weight_map


def join(headers: Sequence[tuple[str, Header]], weight_map: Mapping[str, str] | None) -> Header:
    """One header of many. `headers` are (file name, header); `weight_map` is the index's, where there is one.

    Raises:
        Malformed: a tensor in two files, or files and index that disagree.
    """
    if len(headers) == 1 and weight_map is None:
        return headers[0][1]
    parts = [(file, Rows.of(header.rows)) for file, header in headers]
    rows = Rows.joined(part for _, part in parts)
    if weight_map is None:
        _refuse_shared_names(rows)
    else:
        _compare(parts, weight_map)
    metadata: dict[str, object] = {}
    aliases: dict[str, str] = {}
    for _, header in headers:
        metadata = {**header.metadata, **metadata}
        aliases |= header.aliases
    stated = Stated.joined([header.stated for _, header in headers])
    return Header(rows=rows, metadata=metadata, aliases=aliases, stated=stated)


def _refuse_shared_names(rows: Rows) -> None:
    if len(set(rows.names)) != len(rows):
        names: set[str] = set()
        twice = next(name for name in rows.names if name in names or names.add(name))
        raise Malformed(f"{twice!r} lies in two of the files", fix="the folder mixes two models: name one with --file")


def _compare(parts: Sequence[tuple[str, Rows]], weight_map: Mapping[str, str]) -> None:
    """Each tensor must lie in the one shard that the index names: then none lies in two."""
    fix = "a shard of another model, or a stale index: download it again"
    for file, rows in parts:
        stated = list(map(weight_map.get, rows.names))
        if stated != [file] * len(rows):
            name, other = next((n, s) for n, s in zip(rows.names, stated, strict=True) if s != file)
            where = f"the index has it in {other}" if other else "the index does not know it"
            raise Malformed(f"{file} holds {name!r}; {where}", fix=fix)
    if sum(len(rows) for _, rows in parts) != len(weight_map):
        missing = weight_map.keys() - {name for _, rows in parts for name in rows.names}
        name = min(missing)
        raise Malformed(
            f"the index lists {len(missing)} tensors that no shard holds, {name!r} in {weight_map[name]} first", fix=fix
        )

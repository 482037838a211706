"""What every format that stores a graph of constants has to say of those it cannot place."""

from collections.abc import Iterator, Mapping, Sequence

from weighbridge.ledger import Row, numel

UNATTRIBUTED = "constants_of_unknown_origin"


def graph_notes(
    rows: Sequence[Row], kinds: Mapping[str, str], *, texts: int = 0, sparse: int = 0, reason: str = ""
) -> Iterator[str]:
    """Notes on constants that nothing places (`reason` says why), on those of text, and on sparse ones."""
    apart = [row for row in rows if kinds.get(row.name) == UNATTRIBUTED]
    if apart:
        count = sum(numel(row.shape) for row in apart)
        yield (
            f"{count:,} values in {len(apart):,} constants are no parameters by any evidence, nor surely none "
            f"(first: {apart[0].name[:100]!r}): {reason}they are counted apart"
        )
    if texts:
        yield f"{texts:,} constants of text are left out"
    if sparse:
        yield f"{sparse:,} tensors are sparse: their stored values are counted, not the zeros between"

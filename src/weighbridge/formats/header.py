"""What a reader brings home from one file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weighbridge.ledger import File, Row, Stated


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The tensors of one file, in the order it lists them.

    `aliases` are names that the file itself shows to be one tensor: {copy: original}, both among the rows. `stated` is
    what the format says of them beyond dtype and shape. `files` are those that hold tensors' data beside the one that
    was read: a row's `file` counts on from `index` through them.
    """

    rows: Sequence[Row]
    format: str = ""  # what to call it, where the file's ending does not
    metadata: Mapping[str, object] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    stated: Stated = field(default_factory=Stated)
    notes: Sequence[str] = ()
    files: Sequence[File] = ()

"""Every error that Weighbridge raises on purpose, drawn once.

WeighError                 what is wrong, and how to mend it (exit code 2)
├── NotFound               no such file, model, revision, tensor
├── Ambiguous              several models where one is wanted
├── Refused                readable in principle, unsafe or forbidden in practice
├── Malformed              a file that is not what its format says
│   └── Truncated          ... because bytes are missing
├── Unknown                a number that cannot be given exactly, so it is not given
├── Unreachable            the hub did not answer, or answered no
└── MissingExtra           an optional dependency, named with its install command
"""

_LONGEST = 1000


def _short(text: str) -> str:
    """Text that quotes a stranger, cut in its middle when it goes on forever."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class WeighError(Exception):
    """An error with its mend.

    `what` is one sentence on what is wrong; `fix` is one on how to mend it.
    """

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        """One line: names may come from a hostile file, so line breaks and control codes are shown, not obeyed."""
        line = f"{_short(self.what)}; {_short(self.fix)}" if self.fix else _short(self.what)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class NotFound(WeighError):
    """A file, model, revision or tensor that is not there."""


class Ambiguous(WeighError):
    """Several models where one is wanted."""


class Refused(WeighError):
    """Something that could only be read unsafely, or that access rules forbid."""


class Malformed(WeighError):
    """A file that is not what its format says it is."""


class Truncated(Malformed):
    """A file that ends before its own header says it does."""


class Unknown(WeighError):
    """A number that cannot be given exactly: unknown dtype, layout or architecture."""


class Unreachable(WeighError):
    """The hub did not answer, or would not."""


class MissingExtra(WeighError):
    """An optional dependency that a command needs."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}", fix=f"pip install 'weighbridge[{extra}]'")
        self.extra = extra

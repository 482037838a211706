"""The words of the field, one plain line each, from one data file."""

import json
from functools import lru_cache
from pathlib import Path

from weighbridge.ledger.errors import NotFound


@lru_cache(maxsize=1)
def terms() -> dict[str, dict[str, str]]:
    """{term: {"short": one line, "long": a paragraph}}."""
    return json.loads((Path(__file__).parent / "data" / "glossary.json").read_text("utf-8"))


def short(term: str) -> str:
    """The one line on `term`."""
    return terms()[term]["short"]


def look_up(term: str) -> tuple[str, dict[str, str]]:
    """(term, its entry), plural and case forgiven.

    Raises:
        NotFound: no such term.

    """
    known = terms()
    wanted = term.strip().lower().replace("-", " ").replace("_", " ")
    for form in (
        wanted,
        wanted.removesuffix("s"),
        wanted.removesuffix("es"),
        wanted.removesuffix("parameters").strip(),
    ):
        if form in known:
            return form, known[form]
    raise NotFound(f"no such term: {term!r}", fix=f"known are {', '.join(sorted(known))}")

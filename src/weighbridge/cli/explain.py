"""`weigh explain`: what a word of the field means."""

import click

from weighbridge.cli import output
from weighbridge.ledger import glossary
from weighbridge.ledger.report import Line, Report, Table, Title


@click.command()
@click.argument("term", required=False)
@output.as_json
def explain(term: str | None, as_json: bool) -> None:
    """What TERM means in one line and one paragraph; without TERM, all of them in a line each."""
    if term is None:
        entries = glossary.terms()
        rows = [(name, entry["short"]) for name, entry in entries.items()]
        report = Report(verb="explain", data={"terms": entries}, blocks=[Table(columns=("", ""), rows=rows)])
    else:
        name, entry = glossary.look_up(term)
        blocks = [Title(text=f"{name}: {entry['short']}"), Line(text=entry["long"])]
        report = Report(verb="explain", data={"term": name, **entry}, blocks=blocks)
    output.emit(report, as_json=as_json)

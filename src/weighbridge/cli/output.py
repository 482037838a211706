"""How a report reaches the user: JSON, styled text on a terminal, plain text elsewhere."""

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from weighbridge.ledger.report import Report

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
offline = click.option("--offline", is_flag=True, help="Never open a connection: local files and the hub's cache only.")
file = click.option("--file", metavar="NAME", help="Which file of the folder or repository, when it holds several models.")
base = click.option("--base", metavar="MODEL", help="The base model of an adapter, when it is not where the adapter says.")


def emit(report: Report, *, as_json: bool) -> None:
    """Prints a report to stdout."""
    if as_json:
        json.dump(report.to_dict(), sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif sys.stdout.isatty():
        from rich.console import Console

        Console(emoji=False, highlight=False, soft_wrap=False).print(report)
    else:
        print(report)


def progress(label: str) -> tuple[Callable[[int, int], None] | None, Callable[[], None]]:
    """(a callback of (done, total), what closes it): a bar on stderr when that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        return None, lambda: None
    from rich.progress import Progress

    bar = Progress(transient=True, console=_stderr())
    task = bar.add_task(label, total=None)
    bar.start()

    def advance(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    return advance, bar.stop


def _stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True)

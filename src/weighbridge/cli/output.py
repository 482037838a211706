"""What the verbs share: their common options, progress on stderr, the report on stdout."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from weighbridge.ledger.report import Report

if TYPE_CHECKING:
    from weighbridge.diff import Digest
    from weighbridge.ledger import Ledger

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
offline = click.option("--offline", is_flag=True, help="Never open a connection: local files and the hub's cache only.")
no_cache = click.option("--no-cache", is_flag=True, help="Read everything again, whatever was signed before.")
file = click.option(
    "--file", metavar="NAME", help="Which file of the folder or repository, when it holds several models."
)
base = click.option("--base", metavar="MODEL", help="The base of an adapter, when it is not where the adapter says.")


def fields_of(settings: Sequence[str]) -> dict[str, object]:
    """{field: value} of `--set FIELD=VALUE`: values are JSON, and text where they are none."""
    found: dict[str, object] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--set {setting[:60]}: a field and a value, as in --set num_hidden_layers=40")
        if name.strip() in found:
            raise click.UsageError(f"--set {name.strip()[:60]} is given twice")
        try:
            found[name.strip()] = json.loads(text)
        except (ValueError, RecursionError):
            found[name.strip()] = text
    return found


def emit(report: Report, *, as_json: bool) -> None:
    """Prints a report: JSON, styled text on a terminal, plain text elsewhere."""
    try:
        if as_json:
            sys.stdout.write(f"{_json(report.to_dict())}\n")
        elif sys.stdout.isatty():
            from rich.console import Console

            Console(emoji=False, highlight=False).print(report)
        else:
            print(report)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has left (`weigh show M | head`): nothing is wrong, and nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _json(data: object) -> str:
    try:
        return json.dumps(data, indent=2, allow_nan=False)
    except ValueError:  # JSON has no NaN and no infinity: a checkpoint's settings may
        return json.dumps(_finite(data), indent=2, allow_nan=False)


def _finite(data: object) -> object:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A callback of (done, total) that draws a bar on stderr once it is called; None when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    bars: list[Any] = []

    def advance(done: int, total: int) -> None:
        if not bars:
            from rich.console import Console
            from rich.progress import Progress

            bar = Progress(transient=True, console=Console(stderr=True))
            bars.extend((bar, bar.add_task(label, total=total)))
            bar.start()
        bars[0].update(bars[1], completed=done, total=total)

    try:
        yield advance
    finally:
        if bars:
            bars[0].stop()


def measure(model: str, *, file: str | None, base: str | None, offline: bool, cache: bool) -> "tuple[Ledger, Digest]":
    """`verbs.measure` with its two bars: headers, then values."""
    from weighbridge import verbs

    with progress("headers") as opening, progress("values") as reading:
        return verbs.measure(
            model, file=file, base=base, offline=offline, cache=cache, opening=opening, reading=reading
        )

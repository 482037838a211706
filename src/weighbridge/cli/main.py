"""`weigh`: finds the verb, prints its report, turns errors into one line."""

import gc
import os
import sys
from importlib import import_module
from typing import Any

import click

from weighbridge.ledger.errors import WeighError

# verb -> its one line in `weigh --help`. The verb's module, `cli/VERB.py`, is imported when it is called.
VERBS = {
    "show": "What parameters a model has: roles, dtypes, buffers, extras.",
    "sign": "The parameter signature of a model: a digest of its values.",
    "verify": "Whether a model is the one that a signature names.",
    "explain": "What a word of the field means.",
}


class _Verbs(click.Group):
    """Verbs by name; anything else is a model to show: `weigh MODEL` is `weigh show MODEL`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return getattr(import_module(f"weighbridge.cli.{cmd_name}"), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS:
            _refuse_slip(args)
            args = ["show", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # `weigh --json MODEL`: an option that the group does not have belongs to `show`.
        if args and args[0].startswith("-") and args[0] not in ("--help", "--version"):
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The one-liners stand here, so that help imports no verb.
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _refuse_slip(args: list[str]) -> None:
    """`weigh singn MODEL` is a slip of the pen, not two models."""
    import difflib

    near = difflib.get_close_matches(args[0], VERBS, n=1, cutoff=0.75)
    if near and len(args) > 1 and not os.path.exists(args[0]):
        raise click.UsageError(f"no such verb: {args[0]}; did you mean {near[0]}?")


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"weigh {version('weighbridge')}")
        ctx.exit()


@click.group(cls=_Verbs, context_settings={"help_option_names": ["--help", "-h"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def weigh() -> None:
    """The scale for machine-learning models.

    MODEL is a folder, a file (.safetensors, .gguf, .pt, .bin), a hub id (org/name[@revision]) or ollama:NAME.
    `weigh MODEL` is `weigh show MODEL`.
    """


def main(args: list[str] | None = None) -> Any:
    """Runs a command line and exits: 0 done, 1 a check failed, 2 refused."""
    # Headers make hundreds of thousands of small objects that all live until the end: collecting them is wasted time.
    gc.disable()
    _mend_streams()
    try:
        status = weigh.main(args=args, prog_name="weigh", standalone_mode=False)
        sys.stdout.flush()
    except WeighError as error:
        _refuse(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        _exit(2)
    except click.ClickException as error:
        _refuse(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        _refuse("interrupted", status=130)
    except MemoryError:
        _refuse("out of memory; the file's header is larger than this machine can hold")
    except OSError as error:
        _refuse(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:
        if os.environ.get("WEIGH_DEBUG"):
            raise
        what = f"{type(error).__name__}: {error}"
        _refuse(f"this should not happen ({what[:300]}); please report it, with what WEIGH_DEBUG=1 prints")
    else:
        _exit(status if isinstance(status, int) else 0)


def _mend_streams() -> None:
    """A closed stream is nowhere; a character that a stream cannot show is shown by its number."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _refuse(message: str, *, status: int = 2) -> None:
    line = " ".join(message.split())
    print(f"weigh: {line[:2000]}", file=sys.stderr)
    _exit(status)


def _exit(status: int) -> None:
    sys.exit(status)

"""The command line: one file a verb, loaded when called."""

from weighbridge.cli.main import main

__all__ = ["main"]

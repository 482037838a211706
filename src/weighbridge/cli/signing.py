"""What `sign` and `verify` share: open, read, digest, with progress."""

from dataclasses import replace

from weighbridge.cli import output
from weighbridge.diff import Digest, digest
from weighbridge.formats.models import open_model
from weighbridge.ledger import Ledger, Signature

# Eight digits name a variant among millions; `--full` proves it (docs/signature.md).
SHORT = 8


def sign_model(
    model: str, *, file: str | None, base: str | None, offline: bool, full: bool, cache: bool
) -> tuple[Ledger, Digest, Signature]:
    """(ledger, digest, signature) of a model, its data read unless the cache knows it."""
    advance, done = output.progress(f"headers of {model}")
    try:
        ledger = open_model(model, file=file, base=base, offline=offline, progress=advance)
    finally:
        done()
    advance, done = output.progress(f"signing {model}")
    try:
        found = digest(ledger, progress=advance, cache=cache)
    finally:
        done()
    return ledger, found, replace(ledger.signature, digest=found.hex if full else found.hex[:SHORT])

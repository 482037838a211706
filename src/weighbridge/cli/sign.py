"""`weigh sign`: the parameter signature of a model."""

from dataclasses import replace

import click

from weighbridge.cli import output


@click.command()
@click.argument("model")
@click.option(
    "--full", is_flag=True, help="All 256 bits of the digest in the signature: for proof, not only for a name."
)
@output.no_cache
@output.file
@output.base
@output.offline
@output.as_json
def sign(
    model: str, full: bool, no_cache: bool, file: str | None, base: str | None, offline: bool, as_json: bool
) -> None:
    """The signature of MODEL: its name and a digest of every tensor's values, reading the data once.

    The digest depends on names, dtypes, shapes and values, not on file format details, shard boundaries or order.
    """
    from weighbridge import verbs
    from weighbridge.ledger.report import Line, Report, Table, Title

    ledger, digest = output.measure(model, file=file, base=base, offline=offline, cache=not no_cache)
    signature = str(replace(ledger.signature, digest=digest.hex if full else digest.hex[: verbs.SHORT]))
    base_signature = verbs.base_signature(ledger, cache=not no_cache)
    data = {
        "signature": signature,
        "digest": digest.hex,
        "base": str(base_signature) if base_signature else None,
        "tensors": digest.tensors,
        "bytes": digest.nbytes,
        "source": str(ledger.source),
        "notes": list(ledger.notes),
    }
    rows = [("digest", digest.hex), ("tensors", f"{digest.tensors:,}"), ("bytes", f"{digest.nbytes:,}")]
    if base_signature:
        rows.insert(0, ("base", str(base_signature)))
    notes = [Line(text=f"note: {note}", faint=True) for note in ledger.notes]
    blocks = [Title(text=signature, detail=str(ledger.source)), Table(columns=("", ""), rows=rows, whole=True), *notes]
    output.emit(Report(verb="sign", data=data, blocks=blocks), as_json=as_json)

"""`weigh verify`: whether a model is the one that a signature names."""

import click

from weighbridge.cli import output
from weighbridge.ledger import Signature


@click.command()
@click.argument("model")
@click.argument("signature")
@output.no_cache
@output.file
@output.base
@output.offline
@output.as_json
def verify(
    model: str, signature: str, no_cache: bool, file: str | None, base: str | None, offline: bool, as_json: bool
) -> int:
    """Whether MODEL has the values that SIGNATURE (or a bare digest) names: exit 0 when it does, 1 when not.

    The values decide. The names beside the digest are declared, not measured: differences are shown, not judged.
    """
    from weighbridge import verbs
    from weighbridge.ledger.report import Block, Line, Report, Table, Title

    claim = verbs.claim(signature)
    claimed = str(claim.digest)
    ledger, digest = output.measure(model, file=file, base=base, offline=offline, cache=not no_cache)
    same, bits = digest.hex.startswith(claimed), 4 * len(claimed)
    declared = {} if claim.base_model == verbs.UNNAMED else _differences(claim, ledger.signature)
    data = {
        "verified": same,
        "bits": bits,
        "claimed": claimed,
        "digest": digest.hex,
        "declared_differences": declared,
        "source": str(ledger.source),
    }
    verdict = "verified: these are the values that were signed" if same else "NOT the values that were signed"
    blocks: list[Block] = [
        Title(text=verdict, detail=f"{ledger.source} · {bits} bits compared"),
        Table(columns=("", ""), rows=[("claimed", claimed), ("measured", digest.hex)], whole=True),
    ]
    if same and bits < 128:
        blocks.append(Line(text="note: a short digest names a variant; for proof sign with --full", faint=True))
    for part, (said, is_) in declared.items():
        blocks.append(Line(text=f"note: the signature says {part} {said}, this model calls itself {is_}", faint=True))
    output.emit(Report(verb="verify", data=data, blocks=blocks), as_json=as_json)
    return 0 if same else 1


def _differences(claim: Signature, measured: Signature) -> dict[str, tuple[str | None, str | None]]:
    parts = ("base_model", "version", "adapter", "quantization")
    pairs = {part: (getattr(claim, part), getattr(measured, part)) for part in parts}
    return {part: pair for part, pair in pairs.items() if pair[0] != pair[1]}

"""`weigh verify`: whether a model is the one that a signature names."""

import click

from weighbridge.cli import output


@click.command()
@click.argument("model")
@click.argument("signature")
@click.option("--no-cache", is_flag=True, help="Read everything again, whatever was signed before.")
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
    from weighbridge.cli.signing import sign_model
    from weighbridge.ledger import Signature
    from weighbridge.ledger.errors import Malformed
    from weighbridge.ledger.report import Line, Report, Table, Title

    bare = signature.removeprefix("#").lower()
    claim = Signature(base_model="any", digest=bare) if _is_digest(bare) else Signature.parse(signature)
    if claim.digest is None:
        raise Malformed(f"{signature!r} has no digest to verify", fix="`weigh sign` prints one")
    ledger, found, measured = sign_model(
        model, file=file, base=base, offline=offline, full=True, cache=not no_cache
    )
    same = found.hex.startswith(claim.digest)
    bits = 4 * len(claim.digest)
    declared = {} if claim.base_model == "any" else _differences(claim, measured)
    data = {
        "verified": same,
        "bits": bits,
        "claimed": claim.digest,
        "digest": found.hex,
        "signature": str(measured),
        "declared_differences": declared,
        "source": str(ledger.source),
    }
    verdict = "verified: these are the values that were signed" if same else "NOT the values that were signed"
    blocks = [Title(text=verdict, detail=f"{ledger.source} · {bits} bits compared")]
    blocks.append(Table(columns=("", ""), rows=[("claimed", claim.digest), ("measured", found.hex)]))
    if same and bits < 128:
        blocks.append(Line(text="note: a short digest names a variant; for proof sign with --full", faint=True))
    for part, (said, is_) in declared.items():
        blocks.append(Line(text=f"note: the signature says {part} {said}, this model calls itself {is_}", faint=True))
    output.emit(Report(verb="verify", data=data, blocks=blocks), as_json=as_json)
    return 0 if same else 1


def _is_digest(text: str) -> bool:
    return 8 <= len(text) <= 64 and not text.strip("0123456789abcdef")


def _differences(claim: object, measured: object) -> dict[str, tuple[str | None, str | None]]:
    parts = ("base_model", "version", "adapter", "quantization")
    pairs = {part: (getattr(claim, part), getattr(measured, part)) for part in parts}
    return {part: pair for part, pair in pairs.items() if pair[0] != pair[1]}

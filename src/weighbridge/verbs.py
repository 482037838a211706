"""The verbs as functions: what the command line calls, and what `import weighbridge` offers."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from weighbridge.diff import Digest, cached, digest
from weighbridge.formats import of_arch, open_model, training_of
from weighbridge.ledger import Ledger, Signature
from weighbridge.ledger import show as reports
from weighbridge.ledger.errors import Malformed, NotFound, Refused
from weighbridge.ledger.report import Report

Name = str | os.PathLike[str]
Progress = Callable[[int, int], None]
# Eight digits name a variant among millions; all 64 prove it (docs/signature.md).
SHORT = 8
UNNAMED = "-"  # the base model of a claim that is a bare digest


def show(
    model: object | None = None,
    *others: object,
    arch: str | None = None,
    settings: Mapping[str, object] | None = None,
    layers: bool = False,
    tensors: str | None = None,
    explain: bool = False,
    file: str | None = None,
    base: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Report:
    """What parameters a model has; several models side by side.

    A model is a name (path, hub id, `ollama:NAME`) or an object: a `torch.nn.Module`, a state dict, a pytree of arrays,
    a Keras model, a fitted estimator, a config. No library is imported for it. `settings` change fields of the config,
    and `arch` names a model type instead of a model: what if it had 40 layers? `tensors` is a glob of the tensors to
    list. `progress(done, total)` counts remote headers.

    Raises:
        WeighError: the model cannot be read, with the mend.

    """
    if arch is not None and "model_type" in (settings or {}):
        raise Refused("the type is named twice, by --arch and by --set model_type", fix="leave one out")
    ledgers = [of_arch(arch, settings or {})] if arch is not None else []
    ledgers += [
        _open(spec, file=file, base=base, offline=offline, settings=settings, progress=progress)
        for spec in (model, *others)
        if spec is not None
    ]
    if not ledgers:
        raise NotFound("no model is named", fix="give a path, a hub id (org/name), ollama:NAME, or --arch TYPE")
    if len(ledgers) > 1:
        return reports.side_by_side(ledgers)
    training = training_of(model, file=file) if isinstance(model, (str, os.PathLike)) and not settings else None
    return reports.show(ledgers[0], layers=layers, tensors=tensors, explain=explain, training=training)


def compare(model: Name, *, offline: bool = False) -> Report:
    """A checkpoint against its own config.json: what its files lack, and what they hold that the config does not
    explain.

    `to_dict()["compare"]["complete"]` says whether all is there.

    Raises:
        WeighError: there is no config.json, or one that cannot be counted.
    """
    from weighbridge.formats import compare as comparing
    from weighbridge.formats.comparison import report
    from weighbridge.formats.salvage import config_and_files

    expected, stored, problems, types = config_and_files(os.fspath(model), offline=offline)
    return report(
        comparing.compare(expected, stored, problems, types=types),
        signature=str(expected.signature),
        source=str(expected.source),
        built=expected.metadata["built"],
    )


def _open(spec: object, **options: Any) -> Ledger:
    if isinstance(spec, (str, os.PathLike)):
        return _named(open_model(spec, **options))
    from weighbridge.formats import live

    return live.ledger_of(spec)


def _named(ledger: Ledger) -> Ledger:
    """With the digest in its signature, when an earlier `sign` found it and the files have not changed."""
    known = cached(ledger)
    if known is not None:
        ledger.signature = replace(ledger.signature, digest=known.hex[:SHORT])
    return ledger


def measure(
    model: Name,
    *,
    file: str | None = None,
    base: str | None = None,
    offline: bool = False,
    cache: bool = True,
    opening: Progress | None = None,
    reading: Progress | None = None,
) -> tuple[Ledger, Digest]:
    """A model's ledger and the digest of its values, which are read unless the cache knows them.

    Raises:
        WeighError: the model cannot be read, with the mend.

    """
    ledger = open_model(model, file=file, base=base, offline=offline, progress=opening)
    return ledger, digest(ledger, progress=reading, cache=cache)


def base_signature(ledger: Ledger, *, cache: bool = True) -> Signature | None:
    """The full signature of the base under an adapter, when it is at hand. Its values were read with the adapter's."""
    base = ledger.base
    return None if base is None else replace(base.signature, digest=digest(base, cache=cache).hex)


def sign(
    model: Name, *, full: bool = False, file: str | None = None, base: str | None = None, offline: bool = False
) -> Signature:
    """The parameter signature of a model: its name and a digest of every tensor's values.

    Raises:
        WeighError: the model cannot be read, with the mend.

    """
    ledger, found = measure(model, file=file, base=base, offline=offline)
    return replace(ledger.signature, digest=found.hex if full else found.hex[:SHORT])


def verify(
    model: Name,
    signature: Signature | str,
    *,
    file: str | None = None,
    base: str | None = None,
    offline: bool = False,
) -> bool:
    """Whether a model has the values that a signature, or a bare digest, names.

    Raises:
        Malformed: the signature has no digest.
        WeighError: the model cannot be read, with the mend.

    """
    claimed = claim(signature)
    _, found = measure(model, file=file, base=base, offline=offline)
    return found.hex.startswith(str(claimed.digest))


def claim(signature: Signature | str) -> Signature:
    """What a signature claims; a bare digest claims values and no name.

    Raises:
        Malformed: not a signature, or one without a digest.

    """
    if isinstance(signature, str):
        bare = signature.removeprefix("#").lower()
        is_digest = 8 <= len(bare) <= 64 and not bare.strip("0123456789abcdef")
        signature = Signature(base_model=UNNAMED, digest=bare) if is_digest else Signature.parse(signature)
    if signature.digest is None:
        raise Malformed(f"{signature} has no digest to verify", fix="`weigh sign` prints one")
    return signature

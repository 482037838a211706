"""The report of `weigh show`: what is in a model, counted."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

from weighbridge.ledger import explain as formulas
from weighbridge.ledger.errors import Unknown
from weighbridge.ledger.families import BUFFER, EXTRA, TIED_COPIES
from weighbridge.ledger.glossary import short
from weighbridge.ledger.ledger import Ledger
from weighbridge.ledger.report import Bar, Block, Line, Report, Table, Title
from weighbridge.ledger.tensor import NOWHERE
from weighbridge.ledger.towers import towers
from weighbridge.ledger.units import Bytes, Count

# What people call an extra, and what it is.
_EXTRAS = {
    "tied_copies": "copies of tensors that the model has once",
    "mtp_layers": "multi-token-prediction layers, which the model class does not load",
    "mtp_copies": "embedding and head stored once more for multi-token prediction",
    "quantization_scales": "turn quantized codes back into values",
    "quantization_zero_points": "the code that means zero, per group",
    "quantization_index": "which group a column belongs to",
    "quantization_state": "shapes and code tables of quantized weights",
    "activation_scales": "scales of quantized activations",
    "kv_cache_scales": "scales of a quantized KV cache",
}
_MIXERS = {
    "full": "attention",
    "sliding": "sliding attention",
    "chunked": "chunked attention",
    "latent": "latent attention",
    "compressed": "compressed attention",
    "linear": "linear attention",
    "ssm": "state space",
    "bidirectional": "bidirectional attention",
    "cross": "cross attention",
    "none": "no mixing kept",
}
_MIXING = {
    "heads": "heads",
    "kv_heads": "kv heads",
    "head_dim": "head dim",
    "value_dim": "value dim",
    "window": "window",
    "block": "block",
    "random_blocks": "random blocks",
    "rate": "tokens an entry",
    "kv_rank": "kv rank",
    "rope_dim": "rope dim",
    "nope_dim": "nope dim",
    "conv": "conv",
    "state": "state",
    "indexer": "indexer",
}
_MOST_KINDS = 12  # rows

_MOST_SETTINGS = 40  # rows of a table; a TrainingArguments has 110

Training = Mapping[str, Mapping[str, object]]


def show(
    ledger: Ledger,
    *,
    layers: bool = False,
    tensors: str | None = None,
    explain: bool = False,
    training: Training | None = None,
) -> Report:
    """What is in one model. `tensors` is a glob of the names to list.

    `training` is what lies beside it and is no parameter: {"optimizer_state": {...}, "hyperparameters": {...}, ...}.

    Raises:
        Unknown: packed weights whose number of elements cannot be told.

    """
    data = _data(ledger, layers=layers, tensors=tensors, explain=explain)
    blocks: list[Block] = [
        Title(text=str(ledger.signature), detail=f"{ledger.source} · {_extent(ledger)}"),
        _headline(ledger),
        _roles(ledger),
        *_dtypes(ledger),
        *_mixing(ledger),
        *_towers(ledger),
        *_buffers(ledger),
        *_extras(ledger),
        *_components(ledger),
        *_training(training),
    ]
    if training:
        data["training"] = {name: dict(values) for name, values in training.items()}
    if layers:
        blocks.append(_layers(ledger))
    if tensors is not None:
        blocks.append(_tensors(ledger, tensors))
    if explain:
        blocks += [Title(text="How these counts come about"), *(Line(text=line) for line in _explained(ledger))]
    blocks += [Line(text=f"note: {note}", faint=True) for note in ledger.notes]
    return Report(verb="show", data=data, blocks=blocks, summary=summary(ledger))


def summary(ledger: Ledger) -> str:
    """What will be trained, in one line for a training script: "8,072,204,288 parameters, 41,943,040 trainable
    (0.52%)".
    """
    share = f" ({ledger.trainable / ledger.total:.2%})" if ledger.total else ""
    return f"{ledger.total:,} parameters, {ledger.trainable:,} trainable{share}"


def side_by_side(ledgers: Sequence[Ledger]) -> Report:
    """Several models, one row each."""
    rows = []
    for ledger in ledgers:
        counts = ledger.by_role()
        biggest = max(counts, key=lambda role: counts[role]) if counts else "-"
        dtypes = list(ledger.by_dtype())
        rows.append(
            (
                str(ledger.signature),
                f"{ledger.total:,}",
                _or_unknown(lambda ledger=ledger: ledger.active),
                f"{ledger.buffers:,}",
                f"{sum(ledger.extras.values()):,}",
                ledger.nbytes.human(),
                dtypes[0] if dtypes else "-",
                f"{biggest} {counts[biggest] / ledger.total:.0%}" if counts else "-",
            )
        )
    columns = ("model", ">parameters", ">active", ">buffers", ">extras", ">stored", "mostly", "largest role")
    return Report(
        verb="show",
        data={"models": [_data(ledger, layers=False, tensors=None, explain=False) for ledger in ledgers]},
        blocks=[Title(text=f"{len(ledgers)} models"), Table(columns=columns, rows=rows)],
    )


def _data(ledger: Ledger, *, layers: bool, tensors: str | None, explain: bool) -> dict[str, object]:
    patterns: dict[str, int] = {}
    for family in ledger.families:
        if family.kind == BUFFER:
            patterns[family.pattern] = patterns.get(family.pattern, 0) + family.total
    data: dict[str, object] = {
        "signature": str(ledger.signature),
        "source": str(ledger.source),
        "format": ledger.format,
        "files": len(ledger.source.files),
        "tensors": len(ledger),
        "bytes": ledger.nbytes,
        "summary": summary(ledger),
        "parameters": {
            "total": ledger.total,
            "active": _or_none(lambda: ledger.active),
            "active_excluding_input_embedding": _or_none(lambda: ledger.active_excluding_input_embedding),
            "trainable": ledger.trainable,
            "weights": ledger.weights,
            "biases": ledger.biases,
            "by_role": ledger.by_role(),
            "by_dtype": ledger.by_dtype(),
        },
        "buffers": {"total": ledger.buffers, "by_name_pattern": patterns},
        "extras": {"total": Count(sum(ledger.extras.values())), "by_name": ledger.extras},
        "stored": {"elements": ledger.stored, "packed": ledger.packed},
        "ties": ledger.ties,
        "architecture": ledger.architecture.to_dict() | _seen(ledger),
        "notes": list(ledger.notes),
    }
    for name in ("built", "components"):
        if name in ledger.metadata:
            data[name] = ledger.metadata[name]
    if layers:
        data["layers"] = ledger.by_layer()
    if tensors is not None:
        data["tensor_list"] = [
            {
                "name": t.name,
                "dtype": t.dtype.name,
                "shape": list(t.shape),
                "role": t.role,
                "kind": t.kind,
                "extra": t.extra,
                "elements": t.elements,
                "layer": t.layer,
                "expert": t.expert,
                "bias": t.bias,
                "trainable": t.trainable,
                "tied_to": t.tied_to,
                "bytes": t.nbytes,
                "file": ledger.source.files[t.file].name if t.file < len(ledger.source.files) else None,
                "offset": t.offset if t.offset != NOWHERE else None,
            }
            for t in ledger.tensors
            if fnmatchcase(t.name, tensors)
        ]
    if explain:
        data["explain"] = {
            "closed_form": formulas.closed(ledger),
            "total": formulas.total(ledger),
            "active": _or_none(lambda: formulas.active(ledger)),
            "by_role": formulas.by_role(ledger),
            "stored": _reconciliation(ledger),
        }
    return data


def _or_none(value: Callable[[], object]) -> object:
    try:
        return value()
    except Unknown:
        return None


def _or_unknown(value: Callable[[], int]) -> str:
    try:
        return f"{value():,}"
    except Unknown:
        return "unknown"


def _extent(ledger: Ledger) -> str:
    files = len(ledger.source.files)
    where = f" in {files:,} file{'s' * (files != 1)}" if files else ""
    built = ledger.metadata.get("built")
    way = f" built as {built['class']} by {built['by']}" if isinstance(built, dict) else ""
    return f"{ledger.format}{way}, {len(ledger):,} tensors{where}, {ledger.nbytes.human()}"


def _headline(ledger: Ledger) -> Table:
    rows = [("parameters", f"{ledger.total:,}", short("parameter"))]
    rows += [("  weights", f"{ledger.weights:,}", short("weight")), ("  biases", f"{ledger.biases:,}", short("bias"))]
    try:
        without = ledger.active_excluding_input_embedding
        rows.append(("  active", f"{ledger.active:,}", f"{short('active')} ({without:,} without the input embedding)"))
    except Unknown as unknown:
        rows.append(("  active", "unknown", str(unknown)))
    rows.append(("  trainable", f"{ledger.trainable:,}", short("trainable")))
    rows.append(("buffers", f"{ledger.buffers:,}", short("buffer")))
    if ledger.extras:
        rows.append(("extras", f"{sum(ledger.extras.values()):,}", short("extra")))
    rows.append(("activations", "-", short("activation")))
    return Table(columns=("", ">", ""), rows=rows)


def _roles(ledger: Ledger) -> Table:
    total = ledger.total or 1
    rows = [
        (role, f"{count:,}", f"{count / total:.1%}", Bar(share=count / total))
        for role, count in ledger.by_role().items()
    ]
    return Table(columns=("role", ">parameters", ">share", ""), rows=rows)


def _dtypes(ledger: Ledger) -> list[Block]:
    sizes: dict[str, int] = {}
    for family in ledger.parameters:
        sizes[family.dtype.name] = sizes.get(family.dtype.name, 0) + family.nbytes
    rows = [
        (name, f"{count:,}", Bytes(sizes[name]).human(), f"{sizes[name] * 8 / count:.4g}" if count else "-")
        for name, count in ledger.by_dtype().items()
    ]
    return [Table(columns=("dtype", ">parameters", ">bytes", ">bits each"), rows=rows)]


def _mixing(ledger: Ledger) -> list[Block]:
    """How the layers mix tokens, and which experts they choose among: a row for all layers that are alike."""
    alike: dict[tuple[str, str], int] = {}
    for mixer in ledger.architecture.mixers:
        kind = ("" if mixer.tower == "text" else f"{mixer.tower}, ") + _MIXERS[mixer.kind]
        fields = mixer.to_dict()
        said = [f"{said} {_size(fields[name])}" for name, said in _MIXING.items() if name in fields]
        said += ["cache of an earlier layer"] if mixer.kv_from is not None else []
        alike[kind, ", ".join(said)] = alike.get((kind, ", ".join(said)), 0) + 1
    for router in ledger.architecture.routers:
        said = [f"{router.experts:,} routed"] if router.experts is not None else []
        said += [f"{router.top_k} a token"] if router.top_k is not None else []
        said += [f"{router.shared} shared"] if router.shared else []
        alike["experts", ", ".join(said)] = alike.get(("experts", ", ".join(said)), 0) + 1
    rows = [(kind, f"{count:,}", said) for (kind, said), count in alike.items()]
    if len(rows) > _MOST_KINDS:
        rows[_MOST_KINDS:] = [(f"and {len(rows) - _MOST_KINDS} more kinds", "", "")]
    return [Table(columns=("each layer", ">layers", ""), rows=rows)] if rows else []


def _seen(ledger: Ledger) -> dict[str, object]:
    listed, projectors = towers(ledger)
    return {"towers": listed, "projectors": projectors} if listed else {}


def _towers(ledger: Ledger) -> list[Block]:
    """What sees and hears, and what hands it to the language model."""
    rows = []
    for tower in ledger.architecture.towers:
        said = {"layers": tower.layers, "hidden": tower.hidden, "heads": tower.heads, "image": tower.image}
        said |= {"patch": tower.patch, "mel bins": tower.mel_bins}
        listed = ", ".join(f"{name} {value:,}" for name, value in said.items() if value is not None)
        rows.append((tower.tower, tower.module, listed))
    rows += [("projector", module, f"{count:,} parameters") for module, count in towers(ledger)[1].items()]
    return [Table(columns=("tower", "", ""), rows=rows)] if rows else []


def _size(value: object) -> str:
    return " x ".join(map(_value, value)) if isinstance(value, list) else _value(value)


def _buffers(ledger: Ledger) -> list[Block]:
    families = [family for family in ledger.families if family.kind == BUFFER]
    if not families:
        return []
    families.sort(key=lambda family: -family.total)
    rows = [(family.pattern, f"{family.count:,} x {list(family.shape)}", f"{family.total:,}") for family in families]
    shown = rows[:8]
    if len(rows) > len(shown):
        rest = sum(family.total for family in families[8:])
        shown.append((f"and {len(rows) - 8} more", "", f"{rest:,}"))
    return [Table(columns=("buffers", "", ">elements"), rows=shown)]


def _extras(ledger: Ledger) -> list[Block]:
    if not ledger.extras:
        return []
    rows = [(name.replace("_", " "), f"{count:,}", _EXTRAS.get(name, "")) for name, count in ledger.extras.items()]
    table = Table(columns=("extras", ">elements", ""), rows=rows)
    return [table, Line(text=_reconciliation(ledger), faint=True)]


def _components(ledger: Ledger) -> list[Block]:
    """The models of a pipeline, a row each."""
    parts = ledger.metadata.get("components")
    if not isinstance(parts, dict):
        return []
    rows = [(name, part["class"], f"{part['parameters']:,}", part["bytes"].human()) for name, part in parts.items()]
    return [Table(columns=("component", "class", ">parameters", ">bytes"), rows=rows)]


def _training(training: Training | None) -> list[Block]:
    """A table each of what is kept beside the parameters, with the line that says what it is."""
    blocks: list[Block] = []
    for name, values in (training or {}).items():
        flat = {}
        for key, value in values.items():
            inner = value.items() if isinstance(value, dict) else None
            flat |= {f"{key}.{k}": v for k, v in inner} if inner is not None else {key: value}
        rows = [(key, _value(value)) for key, value in flat.items() if value is not None]
        if len(rows) > _MOST_SETTINGS:
            rows = [*rows[:_MOST_SETTINGS], (f"and {len(rows) - _MOST_SETTINGS} more", "(--json lists them)")]
        blocks.append(Table(columns=(name.replace("_", " "), ""), rows=rows))
        if name in ("optimizer_state", "hyperparameters"):
            blocks.append(Line(text=f"  {short(name.replace('_', ' ').removesuffix('s'))}", faint=True))
    return blocks


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(part)}" for key, part in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _reconciliation(ledger: Ledger) -> str:
    """Parameters, buffers and extras against what the files hold: what a hub's own total is made of."""
    terms = [f"{ledger.total:,} parameters"]
    if ledger.buffers:
        terms.append(f"{ledger.buffers:,} buffers")
    terms += [f"{count:,} {name.replace('_', ' ')}" for name, count in ledger.extras.items()]
    whole = int(ledger.stored + ledger.packed)
    tail = f", stored packed in {ledger.stored:,}" if ledger.packed else ""
    return f"{' + '.join(terms)} = {whole:,} elements{tail}"


def _layers(ledger: Ledger) -> Table:
    table = ledger.by_layer()
    roles = [role for role in ledger.by_role() if any(role in counts for counts in table.values())]
    rows = [
        (key or "(outside)", f"{sum(counts.values()):,}", *(f"{counts[r]:,}" if r in counts else "" for r in roles))
        for key, counts in table.items()
    ]
    return Table(columns=("layer", ">parameters", *(f">{role}" for role in roles)), rows=rows)


def _tensors(ledger: Ledger, glob: str) -> Table:
    rows = []
    for tensor in ledger.tensors:
        if not fnmatchcase(tensor.name, glob):
            continue
        kind = (tensor.extra or "").replace("_", " ") or (tensor.kind if tensor.kind != "parameter" else tensor.role)
        if tensor.kind == EXTRA and tensor.extra == TIED_COPIES and tensor.tied_to:
            kind = f"copy of {tensor.tied_to}"
        shape = " x ".join(str(n) for n in tensor.shape) or "scalar"
        rows.append((tensor.name, tensor.dtype.name, shape, f"{tensor.elements:,}", kind))
    return Table(columns=("tensor", "dtype", "shape", ">elements", "what"), rows=rows)


def _explained(ledger: Ledger) -> list[str]:
    closed = formulas.closed(ledger)
    lines = [f"closed form: {closed}"] if closed else []
    lines.append(f"total: {formulas.total(ledger)}")
    lines += [f"{role}: {formula}" for role, formula in formulas.by_role(ledger).items()]
    try:
        lines.append(f"active: {formulas.active(ledger)}")
    except Unknown as unknown:
        lines.append(f"active: not known, because {unknown}")
    return [*lines, f"stored: {_reconciliation(ledger)}"]

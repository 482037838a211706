"""From config.json and GGUF metadata to an `Architecture`.

A field has one meaning and many names; the names are tried in order. Multimodal configs nest the language model's
fields: those are looked up there first, since layers, experts and vocabulary are the decoder's.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from weighbridge.ledger import Architecture, Mixer, Router, Row, Tower
from weighbridge.ledger.errors import Malformed, Refused, Unknown

if TYPE_CHECKING:
    from weighbridge.formats.blueprints import Built

LARGEST = 16_000_000  # bytes; the largest real config.json, with a label map of 21,843 classes, takes 1.2 MB
_MOST = 1 << 32  # of anything: layers, heads, experts, words, positions
# Counts of parameters hang on these: nonsense in them is refused. Elsewhere it is taken for not said.
_COUNTED = frozenset({"layers", "experts", "experts_per_token", "mtp_layers"})
_NESTED = (
    "text_config",
    "llm_config",
    "language_config",
    "thinker_config",
    "vlm_config",
    "ffn_config",
    "decoder",
    "global_config",
    "decoder_config",
    "generator",
)
_SPARSE = ("marlin-24", "sparse-bitmask", "sparse-24-bitmask")  # formats that leave out zeros
_NAMES: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "ffn": ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "kv_channels"),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
    "context": ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx"),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
    "experts_per_token": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "moe_topk",
        "moe_top_k",
        "moe_k",
        "top_k_experts",
        "num_experts_per_topk",
        "num_selected_experts",
        "experts_per_token",
    ),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "mtp_layers": ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers"),
}
_GGUF_NAMES = {
    "layers": "block_count",
    "hidden": "embedding_length",
    "ffn": "feed_forward_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "vocabulary": "vocab_size",
    "context": "context_length",
    "experts": "expert_count",
    "experts_per_token": "expert_used_count",
    "shared_experts": "expert_shared_count",
    "mtp_layers": "nextn_predict_layers",
}


def from_config(config: Mapping[str, object], *, built: "Built | None" = None) -> Architecture:
    """What a transformers-style config.json says, and what its class fills in. `built` is the model that its blueprint
    makes of it, where one is known.

    Raises:
        Malformed: a count that is negative or not a whole number.

    """
    model_type = config.get("model_type")
    model_type = model_type if isinstance(model_type, str) else None
    views = [*_nested(config), config]
    defaults = _facts()["defaults"].get(model_type or "", {})
    values: dict[str, Any] = {}
    for field, names in _NAMES.items():
        values[field] = _first(views, names, field)
        stated = any(view.get(name) is not None for view in views for name in names)
        if values[field] is None and field in defaults and not stated:
            values[field] = defaults[field]
    mixers: tuple[Mixer, ...] = ()
    routers: tuple[Router, ...] = ()
    towers: tuple[Tower, ...] = ()
    frozen: tuple[str, ...] = ()
    if built is not None:
        from weighbridge.formats.mixing import mixers_of, routers_of, towers_of

        mixers, routers, frozen = mixers_of(built), routers_of(built), tuple(built.frozen)
        towers = towers_of(built, mixers)
        _fill(values, built, mixers)
    if _first(views, ("zero_expert_num",), "zero_experts"):
        values["experts_per_token"] = None  # some picks are of experts that compute nothing: it varies by token
    stated = config.get("architectures")
    classes = tuple(c for c in stated if isinstance(c, str)) if isinstance(stated, list) else ()
    tied = False if not set(classes).isdisjoint(_facts()["untied"]) else _tied(config, defaults)
    return Architecture(
        model_type=model_type,
        classes=classes,
        tied_embeddings=tied,
        mixers=mixers,
        routers=routers,
        towers=towers,
        frozen=frozen,
        **values,
        **_quantization(config, views),
    )


def described(config: Mapping[str, object]) -> Architecture:
    """`from_config` with what the family's blueprint says of each layer, where one knows the config."""
    from weighbridge.formats.blueprints import build

    model_type, named = config.get("model_type"), _class_of(config)
    if isinstance(model_type, str):
        for class_name in dict.fromkeys((named, None)):  # a class that nobody knows still has the type's layers
            try:
                built = build(config, model_type=model_type, class_name=class_name, facts_only=True)
                return from_config(config, built=built)
            except (Unknown, Malformed, Refused):
                continue
    return from_config(config)


def apart(config: Mapping[str, object]) -> Callable[[str], bool]:
    """Whether the class that a config names has a tensor for itself, by its name: no where nobody knows the class."""

    @lru_cache(maxsize=1)
    def known() -> Mapping[str, object]:
        from weighbridge.formats.blueprints import build

        model_type, named = config.get("model_type"), _class_of(config)
        if not isinstance(model_type, str) or named is None:
            return {}
        try:
            return build(config, model_type=model_type, class_name=named).tensors
        except (Unknown, Malformed, Refused):
            return {}

    return lambda name: name in known()


def _class_of(config: Mapping[str, object]) -> str | None:
    classes = config.get("architectures")
    return classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else None


def _fill(values: dict[str, Any], built: "Built", mixers: Sequence[Mixer]) -> None:
    """Adds what the config class says where the config does not: the language model's part first."""
    from weighbridge.formats.blueprints import Settings

    settings: Settings | None = built.settings
    views = []
    while settings is not None:
        views.append(settings)
        settings = next(
            (part for name in _NESTED if settings.has(name) and isinstance(part := settings.read(name), Settings)), None
        )
    for field, names in _NAMES.items():
        for view in reversed(views):
            for name in names:
                value = view.read(name) if values[field] is None and view.has(name) else None
                if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST:
                    values[field] = value
    own = _keeping(mixers)
    crossing = [mixer.module for mixer in mixers if mixer.kind == "cross" and mixer.tower == "text"]
    crossing = [module for module in dict.fromkeys(crossing) if module.rpartition(".")[0] in crossing[0]]
    if crossing and built.settings.read("is_encoder_decoder"):  # the decoder's, which keeps a cache
        own = [mixer for mixer in own if mixer.module in crossing]
        values["layers"] = len(crossing)
    values.update(_alike(own))


def _keeping(mixers: Sequence[Mixer]) -> list[Mixer]:
    """Those of the language model that attend to its own sequence; of a model without one, of all of it."""
    own = [mixer for mixer in mixers if mixer.kind not in ("none", "cross")]
    return [mixer for mixer in own if mixer.tower == "text"] or own


def _alike(own: Sequence[Mixer]) -> dict[str, int]:
    """Heads and their width, where all layers have the same."""
    values: dict[str, int] = {}
    for field in ("heads", "kv_heads", "head_dim"):
        found = {getattr(mixer, field) for mixer in own} - {None}
        if len(found) == 1:
            values[field] = found.pop()
    latent = {(mixer.nope_dim, mixer.rope_dim) for mixer in own if mixer.kind == "latent"}
    others = {mixer.kind for mixer in own} - {"latent", "linear", "ssm"}
    nope, rope = latent.pop() if len(latent) == 1 and not others else (None, None)
    if nope is not None and rope is not None:
        values["head_dim"] = nope + rope  # of queries and keys, whatever the config calls its head_dim
    return values


def _nested(config: Mapping[str, object]) -> list[Mapping[str, object]]:
    found: list[Mapping[str, object]] = []
    for name in _NESTED:
        inner = config.get(name)
        if isinstance(inner, dict):
            found += [*_nested(inner), inner]
    return found


def _first(views: list[Mapping[str, object]], names: tuple[str, ...], field: str) -> int | None:
    for view in views:
        for name in names:
            value = view.get(name)
            if isinstance(value, list) and value and all(part == value[0] for part in value):
                value = value[0]  # one for each layer, all alike
            if value is None or isinstance(value, (bool, list, dict)):
                continue  # per layer or per tower: not one number
            if not isinstance(value, int) or not 0 <= value <= _MOST:
                if field not in _COUNTED:
                    continue
                raise Malformed(
                    f"config.json: {name} is {str(value)[:40]!r}", fix="it should be a whole number, 0 or more"
                )
            return value
    return None


def _tied(config: Mapping[str, object], defaults: Mapping[str, int]) -> bool | None:
    """Stated by the config, or by its language model's part; absent, as the class has it; unknown class, unknown."""
    inner = (config.get(name) for name in ("text_config", "llm_config", "language_config"))
    for view in (config, *(part for part in inner if isinstance(part, dict))):
        stated = view.get("tie_word_embeddings")
        if isinstance(stated, bool):
            return stated
    tied = defaults.get("tied")
    return None if tied is None else bool(tied)


@lru_cache(maxsize=1)
def _facts() -> Any:
    """What classes fill in for fields that a config.json leaves out (`defaults`), and which never tie (`untied`)."""
    raw = (Path(__file__).parent / "data" / "transformers.json").read_bytes()
    return msgspec.json.decode(raw)


def _quantization(config: Mapping[str, object], views: list[Mapping[str, object]]) -> dict[str, Any]:
    stated = next(
        (v[k] for v in (config, *views) for k in ("quantization_config", "quantization") if isinstance(v.get(k), dict)),
        None,
    )
    if not isinstance(stated, dict):
        return {}
    method = stated.get("quant_method")
    if method is None and "group_size" in stated and "bits" in stated:
        method = "mlx"
    if method is None and "quant_algo" in stated:
        method = "modelopt"
    if stated.get("load_in_4bit") or stated.get("load_in_8bit"):
        method = "bitsandbytes"
    inner = stated.get("quant_config")
    inner = inner.get("weight_quant_params") if isinstance(inner, dict) else None
    hqq = inner if isinstance(inner, dict) else {}
    bits = stated.get("bits", stated.get("nbits", stated.get("w_bit", hqq.get("nbits"))))
    group = stated.get("group_size", stated.get("q_group_size", hqq.get("group_size")))
    groups = stated.get("config_groups")
    if isinstance(groups, dict):
        weights = [w for g in groups.values() if isinstance(g, dict) and isinstance(w := g.get("weights"), dict)]
        widths, sizes = ({w.get(name) for w in weights} for name in ("num_bits", "group_size"))
        bits = widths.pop() if bits is None and len(widths) == 1 else bits
        group = sizes.pop() if group is None and len(sizes) == 1 else group
    if stated.get("format") in _SPARSE or stated.get("sparsity_config"):
        method = f"{method} {stated.get('format') or 'sparse'}"
    if method == "quanto" and stated.get("weights") in ("int4", "int2"):
        method = f"quanto {stated['weights']}"
    own = {
        module: (_width(entry.get("bits"), 16), _width(entry.get("group_size"), 1 << 20))
        for module, entry in stated.items()
        if isinstance(entry, dict) and ("bits" in entry or "group_size" in entry)
    }
    return {
        "quantization": str(method) if method is not None else None,
        "quantization_bits": _width(bits, 16),
        "quantization_group": _width(group, 1 << 20),
        "quantization_modules": own or None,
    }


def _width(value: object, most: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most else None


def from_gguf(metadata: Mapping[str, object], rows: Iterable[Row] = ()) -> Architecture:
    """What the metadata of a GGUF file says, and of its layers, which the tensors among `rows` tell."""
    from weighbridge.formats.gguf_mixing import mixers_of

    family = metadata.get("general.architecture")
    values: dict[str, Any] = {}
    for field, name in _GGUF_NAMES.items():
        value = metadata.get(f"{family}.{name}")
        if isinstance(value, list) and value and len(set(value)) == 1:
            value = value[0]
        values[field] = value if isinstance(value, int) and not isinstance(value, bool) else None
    if values["vocabulary"] is None:
        tokens = metadata.get("tokenizer.ggml.tokens")
        values["vocabulary"] = len(tokens) if isinstance(tokens, list) else getattr(tokens, "length", None)
    if values["layers"] is not None and values["mtp_layers"]:
        values["layers"] -= values["mtp_layers"]  # block_count includes them
    if values["experts"] == 0:
        values["experts"] = values["experts_per_token"] = None
    rows = list(rows)
    mixers, routers = mixers_of(metadata, rows)
    values |= _alike(_keeping(mixers))
    names = {row.name for row in rows if row.name in ("token_embd.weight", "output.weight")}
    return Architecture(
        model_type=str(family) if family else None,
        tied_embeddings="output.weight" not in names if "token_embd.weight" in names else None,
        mixers=mixers,
        routers=routers,
        **values,
    )

"""What a model's configuration says of its shape, normalized across config.json and GGUF metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

FULL, SLIDING, CHUNKED, LATENT, LINEAR, SSM = "full", "sliding", "chunked", "latent", "linear", "ssm"
COMPRESSED, BIDIRECTIONAL, CROSS, NONE = "compressed", "bidirectional", "cross", "none"
MIXERS = (FULL, SLIDING, CHUNKED, LATENT, LINEAR, SSM, COMPRESSED, BIDIRECTIONAL, CROSS, NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """How one layer mixes tokens, and so what it keeps of a sequence. A layer may have several (self and cross
    attention).

    | kind | kept per sequence |
    |---|---|
    | full | keys and values of every token: kv_heads x (head_dim + value_dim) |
    | sliding, chunked | the same of the last `window` tokens |
    | latent | kv_rank + rope_dim of every token, shared by all heads |
    | compressed | keys, also used as values, of the last `window` tokens, and an entry as wide for every `rate` |
    | linear, ssm | a fixed state: `conv` (channels, width), `state` (shape of the recurrent state) |
    | cross | keys and values of the encoder's tokens |
    | bidirectional, none | nothing |

    A field that does not apply is None.
    """

    module: str  # the layer: `model.layers.0`
    kind: str
    tower: str = "text"  # text | vision | audio
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None  # where it differs from head_dim
    window: int | None = None  # tokens
    block: int | None = None  # tokens of a block, where blocks see their neighbors, the first and the last one
    random_blocks: int | None = None  # ... and how many others
    rate: int | None = None  # tokens that one compressed entry stands for
    kv_rank: int | None = None
    rope_dim: int | None = None
    nope_dim: int | None = None
    conv: tuple[int, ...] | None = None
    state: tuple[int, ...] | None = None
    kv_from: str | int | None = None  # the layer whose cache this one uses
    indexer: tuple[int, ...] | None = None  # heads and width of an indexer that keeps keys of its own

    def to_dict(self) -> dict[str, object]:
        """The fields that apply."""
        return _known(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """The mixture of experts in one layer. `shared` experts see every token, beside the `top_k` chosen ones."""

    module: str
    experts: int | None = None
    top_k: int | None = None
    shared: int | None = None

    def to_dict(self) -> dict[str, object]:
        """The fields that are known."""
        return _known(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """What a part of the model that sees or hears is built from."""

    module: str  # where it lies: `model.vision_tower`
    tower: str  # vision | audio
    model_type: str | None = None
    layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    image: int | None = None  # pixels of a side
    patch: int | None = None
    mel_bins: int | None = None

    def to_dict(self) -> dict[str, object]:
        """The fields that are known."""
        return _known(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The normalized configuration. None means that neither the configuration nor its class says."""

    model_type: str | None = None
    classes: tuple[str, ...] = ()
    layers: int | None = None
    hidden: int | None = None
    ffn: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    experts: int | None = None  # routed experts of an MoE layer
    experts_per_token: int | None = None
    shared_experts: int | None = None
    mtp_layers: int | None = None  # multi-token-prediction layers stored after the model's own
    tied_embeddings: bool | None = None
    mixers: tuple[Mixer, ...] = ()  # layer by layer; empty where nobody knows them
    routers: tuple[Router, ...] = ()
    towers: tuple[Tower, ...] = ()
    frozen: tuple[str, ...] = ()  # tensors, and modules with all below, that the model class keeps from training
    quantization: str | None = None  # method: "gptq", "fp8", "modelopt", "mlx", ...
    quantization_bits: int | None = None
    quantization_group: int | None = None  # elements that share one scale
    quantization_modules: Mapping[str, tuple[int | None, int | None]] | None = (
        None  # {module: (bits, group)} of its own
    )

    def packing_of(self, module: str) -> tuple[int | None, int | None]:
        """(bits, group) of a module's codes: its own, where the configuration makes an exception of it."""
        own = (self.quantization_modules or {}).get(module, (None, None))
        return own[0] or self.quantization_bits, own[1] or self.quantization_group

    def to_dict(self) -> dict[str, object]:
        """The fields that are known."""
        return _known(self)


def _known(record: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, tuple):
            value = [part.to_dict() if isinstance(part, (Mixer, Router, Tower)) else part for part in value]
            if not value and field.name in ("mixers", "routers", "towers", "frozen"):
                continue
        if value is not None:
            found[field.name] = value
    return found

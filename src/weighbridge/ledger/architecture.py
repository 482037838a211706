"""What a model's configuration says of its shape, normalized across config.json and GGUF metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The normalized configuration. None means that the configuration does not say, never a default."""

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
    mtp_layers: int | None = None  # multi-token-prediction layers stored after the model's own
    tied_embeddings: bool | None = None
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
        known = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in known if value is not None}

"""How a variant is called when nobody has named it: the parts of its signature, from what its files say."""

import re
from collections.abc import Mapping
from pathlib import Path

from weighbridge.ledger import Architecture, Signature

# llama.cpp's llama_ftype: what `general.file_type` says of a mixture of types. Source: llama.h, 2026-11.
_RUNS = {
    0: "f32 f16 q4_0 q4_1",
    7: "q8_0 q5_0 q5_1 q2_k q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m q6_k",
    19: "iq2_xxs iq2_xs q2_k_s iq3_xs iq3_xxs iq1_s iq4_nl iq3_s iq3_m iq2_s iq2_m iq4_xs iq1_m bf16",
    36: "tq1_0 tq2_0 mxfp4_moe nvfp4 q1_0 q2_0",
}
_FILE_TYPES = {first + at: name for first, names in _RUNS.items() for at, name in enumerate(names.split())}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def signature(
    *,
    base: str,
    architecture: Architecture,
    metadata: Mapping[str, object],
    config: Mapping[str, object],
    version: str | None = None,
) -> Signature:
    """A signature without a digest. Names are lower-cased: hub names differ in nothing but case only by mistake."""
    return Signature(
        base_model=base.lower(),
        version=version[:12] if version and _COMMIT.fullmatch(version) else version,
        quantization=quantization(architecture, metadata, config),
    )


def local_base(path: Path) -> tuple[str, str | None]:
    """(name, version) of a local model: its folder's or file's name; a hub cache snapshot's repository and commit."""
    path = path.resolve()
    parts = path.parts
    for at, part in enumerate(parts):
        if part.startswith("models--") and parts[at + 1 : at + 2] == ("snapshots",) and len(parts) > at + 2:
            return part.removeprefix("models--").replace("--", "/"), parts[at + 2]
    if path.is_dir():
        return path.name or "model", None
    stem = _SHARD.sub("", path.stem)
    # "model.safetensors" says less than the folder it lies in.
    plain = stem in ("model", "config", "pytorch_model", "adapter_model", "consolidated", "diffusion_pytorch_model")
    return (path.parent.name or stem if plain else stem), None


def quantization(
    architecture: Architecture, metadata: Mapping[str, object], config: Mapping[str, object]
) -> str | None:
    """A short lower-case label of the quantization; None for plain floats."""
    file_type = metadata.get("general.file_type")
    if isinstance(file_type, int):
        return _FILE_TYPES.get(file_type, f"ftype-{file_type}")
    method = architecture.quantization
    if method is None:
        return None
    stated = config.get("quantization_config")
    stated = stated if isinstance(stated, dict) else {}
    detail: object = None
    if method == "bitsandbytes":
        detail = stated.get("bnb_4bit_quant_type") if stated.get("load_in_4bit") else "int8"
    elif method == "modelopt":
        detail = stated.get("quant_algo")
    elif method == "compressed-tensors":
        detail = stated.get("format")
    elif architecture.quantization_bits:
        detail = f"int{architecture.quantization_bits}"
    return f"{method}-{detail}".lower() if detail else method.lower()

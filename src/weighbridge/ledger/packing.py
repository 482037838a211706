"""Quantized tensors: what is a weight in disguise, and what merely serves one.

Quantized checkpoints store a weight as codes (`qweight`, `weight_packed`, `X_blocks`), several to a stored element, and
beside it what turns codes back into values: scales, zero points, index, state. The codes count as the parameters they
stand for; the rest are extras, named. Bits come from the shapes of the stored tensors, which cannot be stale as a
config can be, and from the config only where shapes do not tell.

Sources, read 2026-11: AutoGPTQ/GPTQModel and AutoAWQ packers, bitsandbytes 0.50 `QuantState`, compressed-tensors
(pack-quantized, int, float, nvfp4), DeepSeek-V3 FP8 blocks, gpt-oss MXFP4, NVIDIA ModelOpt NVFP4/FP8, MLX `quantize`,
torchao 0.18 safetensors support, Quanto, HQQ.
"""

import json
from collections.abc import Callable
from math import prod

from weighbridge.ledger.dtype import DType
from weighbridge.ledger.errors import Unknown

SCALES = "quantization_scales"
ZEROS = "quantization_zero_points"
INDEX = "quantization_index"
STATE = "quantization_state"
ACTIVATION = "activation_scales"
KV_CACHE = "kv_cache_scales"

# Leaf (numbers as "#") -> the extra it is. Only believed where codes lie beside it; see `serves`.
_SERVANTS = {
    SCALES: (
        "weight_scale_inv weight_scale weight_scale_# weight_global_scale weight_scales scales scale SCB "
        "absmax nested_absmax _weight_scale _scale scale_inv per_tensor_scale qscale_weight"
    ),
    ZEROS: "qzeros weight_zero_point zeros zero zero_point biases _weight_zero_point _shift",
    INDEX: "g_idx weight_g_idx perm",
    STATE: (
        "quant_map nested_quant_map bitsandbytes__nf# bitsandbytes__fp# weight_format weight_shape bitmask row_offsets "
        "qweight_type shape nbits group_size axis packing channel_wise optimize round_zero stores_quant_config "
        "unpack_view_dtype view_as_float quant_scale quant_zero compute_dtype offload_meta"
    ),
    ACTIVATION: (
        "input_scale input_global_scale input_zero_point output_scale output_zero_point activation_scale act_scale "
        "act_scales pre_quant_scale input_scale_ub smooth_factor qscale_act"
    ),
}
_EXTRA_OF = {leaf: extra for extra, leaves in _SERVANTS.items() for leaf in leaves.split()}
# Words that other modules use for parameters of theirs.
_COMMON = frozenset({"scale", "scales", "zero", "zeros", "zero_point", "biases", "shape", "axis", "packing", "perm"})
_QUANTIZER = frozenset({"scale", "zero_point"})
_KV_LEAVES = frozenset({f"{what}_scale" for what in ("k", "v", "kv", "q", "prob", "prob_output")})
_KV_LEAVES |= {f"{what}_zero_point" for what in ("k", "v", "q")}
_SUFFIXES = (
    ("_input_scale", ACTIVATION),
    ("_scale_inv", SCALES),
    ("_scales", SCALES),
    ("_scale", SCALES),
    ("_scale_#", SCALES),
)
# Leaves that hold codes; a plain `weight` does too when its dtype and neighbors say so.
CODES = frozenset({"qweight", "weight_packed", "weight", "W_q", "_data", "_weight_qdata", "qdata", "blocks"})

# Methods whose codes say too little of what they stand for.
_REFUSED = frozenset(["aqlm", "vptq", "spqr", "exl2", "exl3", "quip", "quip_sharp", "higgs", "marlin", "quanto_int4"])
_REFUSED_FORMATS = ("compressed-tensors marlin", "compressed-tensors sparse", "quanto int")

Sibling = Callable[[str], tuple[int, ...] | None]


def serves(leaf: str, siblings: frozenset[str], coded: frozenset[str]) -> str | None:
    """The extra that a tensor called `leaf` is, None when it is none.

    `siblings` are the leaves stored in the same module, `coded` those of them that are no plain floats: beside a weight
    of plain floats a `scale` is learned.
    """
    if leaf in _KV_LEAVES:
        return KV_CACHE
    if siblings == _QUANTIZER and "zero_point" in coded:
        return ACTIVATION  # of a module that only quantizes what flows through
    extra = _EXTRA_OF.get(leaf)
    if extra is not None and (extra is ACTIVATION or siblings & CODES or leaf.startswith("bitsandbytes__")):
        return None if leaf in _COMMON and not coded - {leaf} else extra
    # Fused experts carry the suffix on the parameter's own name: gate_up_proj beside gate_up_proj_scale_inv.
    for suffix, suffix_extra in _SUFFIXES:
        stem = leaf.removesuffix(suffix)
        if stem != leaf and (stem in coded or f"{stem}_blocks" in coded):
            return suffix_extra
    return None


def elements_in(
    leaf: str,
    dtype: DType,
    shape: tuple[int, ...],
    *,
    siblings: frozenset[str],
    sibling: Sibling,
    method: str | None,
    bits: int | None,
    group: int | None,
    described: str | None,
) -> int | None:
    """Logical elements of codes; None when the tensor holds no codes and counts as it is stored.

    `sibling(leaf)` gives the shape of a tensor of the same module, `method`, `bits` and `group` what the config says,
    `described` what the file's metadata says of this very tensor (torchao).

    Raises:
        Unknown: codes whose width neither shapes nor config tell.

    """
    stored = prod(shape)
    if method in _REFUSED or (method and method.startswith(_REFUSED_FORMATS)):
        raise Unknown(f"weights packed by {method}", fix="a newer Weighbridge may know it")
    if leaf == "blocks" and "scales" in siblings:
        return stored * 2
    if leaf.endswith("_blocks") and f"{leaf.removesuffix('_blocks')}_scales" in siblings:
        return stored * 2
    if leaf not in CODES or dtype.kind == "block" or dtype.block > 1:
        return None
    if "absmax" in siblings:
        return stored * int(dtype.bits) // 4
    if leaf in ("_weight_qdata", "qdata"):
        return _described(stored, dtype, described)
    if dtype.name not in ("I32", "U32", "U8", "I8", "I16"):
        return None
    if method is None and not siblings & _EXTRA_OF.keys():
        return None
    if leaf == "weight":
        return _plain_weight(stored, dtype, shape, siblings, sibling, method, bits, group)
    if leaf == "qweight":
        bits = _bits_from_zeros(sibling) or bits
    elif leaf == "weight_packed":
        bits = 4 if dtype.name == "U8" else _bits_from_scales(shape, sibling("weight_scale"), group) or bits
    elif leaf == "_data":
        bits = bits or int(dtype.bits)
    if not bits:
        raise Unknown(f"codes of unknown width in {leaf!r} (quantization method {method or 'not named'!r})")
    if leaf in ("weight_packed", "W_q") and int(dtype.bits) % bits:
        raise Unknown(f"{bits}-bit codes that are padded to {dtype}")
    return stored * int(dtype.bits) // bits


def _plain_weight(
    stored: int,
    dtype: DType,
    shape: tuple[int, ...],
    siblings: frozenset[str],
    sibling: Sibling,
    method: str | None,
    bits: int | None,
    group: int | None,
) -> int | None:
    """A tensor called `weight` with an integer dtype."""
    scales = sibling("scales") if "scales" in siblings else None
    if dtype.name == "U32" and scales and group and shape:
        measured, rest = divmod(shape[-1] * 32, scales[-1] * group)
        if rest == 0 and measured in (2, 3, 4, 5, 6, 8) and bits in (None, measured):
            return stored // shape[-1] * scales[-1] * group
        raise Unknown(f"MLX codes of {shape} do not fit scales of {scales} at {bits} bits in groups of {group}")
    if dtype.name == "U8" and method == "bitnet":
        return stored * 4
    if dtype.name == "U8" and siblings & {"weight_scale", "weight_scale_#"}:
        # NVFP4 has a scale for 16 elements, MXFP4 for 32: two codes a byte. BitNet has one for all, and four.
        scales = sibling("weight_scale")
        if method is not None or (
            scales and len(scales) == len(shape) and shape[-1] * 2 in (scales[-1] * 16, scales[-1] * 32)
        ):
            return stored * 2
        raise Unknown(f"codes of unknown width in 'weight' of {dtype}", fix="put config.json beside the weights")
    if dtype.name == "I8":
        # An OCP scale (one per 32 elements) shows whether a byte holds one code or two.
        micro = sibling("scale")
        if micro and len(micro) == len(shape) and micro[-1] * 32 == shape[-1] * 2:
            return stored * 2
        return stored
    if dtype.name in ("U32", "I32", "U8"):
        raise Unknown(f"a packed weight of dtype {dtype} by an unknown method ({method or 'not named'!r})")
    return None


def _bits_from_scales(shape: tuple[int, ...], scales: tuple[int, ...] | None, group: int | None) -> int | None:
    """compressed-tensors: weight_packed is (out, in·bits/32), weight_scale (out, in/group)."""
    if not scales or not group or not shape or scales[-1] < 2:
        return None
    bits, rest = divmod(shape[-1] * 32, scales[-1] * group)
    return bits if rest == 0 and bits in (2, 4, 8) else None


def _bits_from_zeros(sibling: Sibling) -> int | None:
    """GPTQ and AWQ pack zero points as they pack weights: qzeros is (groups, out·bits/32), scales (groups, out)."""
    zeros, scales = sibling("qzeros"), sibling("scales")
    if not zeros or not scales or not scales[-1]:
        return None
    bits, rest = divmod(zeros[-1] * 32, scales[-1])
    return bits if rest == 0 and bits in (2, 3, 4, 8) else None


def _described(stored: int, dtype: DType, described: str | None) -> int:
    """Torchao writes the tensor subclass and its attributes into the header as JSON."""
    try:
        record = json.loads(described or "{}")
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        record = {}
    kind, attributes = record.get("_type"), record.get("_data")
    shape = attributes.get("shape") if isinstance(attributes, dict) else None
    if isinstance(shape, list):
        # The header is the only witness, so it is held against the bytes: a code takes one bit at the least.
        sound = len(shape) <= 16 and all(type(n) is int and 0 <= n < 1 << 62 for n in shape)
        if sound and prod(shape) <= stored * int(dtype.bits):
            return prod(shape)
        raise Unknown(f"a torchao tensor of {stored:,} stored elements that claims a shape of {str(shape)[:60]}")
    if isinstance(kind, str) and dtype.bits == 8:
        if "8Tensor" in kind:
            return stored
        if kind == "NVFP4Tensor" or (kind == "MXTensor" and "float4" in json.dumps(attributes)):
            return stored * 2
        if kind == "MXTensor":
            return stored
    raise Unknown(f"codes of a torchao {kind or 'tensor that the header does not describe'}")

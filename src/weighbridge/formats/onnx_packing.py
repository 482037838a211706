"""Packed weights in ONNX: how many an operator unpacks from the bytes that it is given.

Source: the schemas of onnxruntime 1.32 (MatMulNBits, MatMulBnb4, GatherBlockQuantized, QMoE).
"""

from math import ceil

from weighbridge.formats.onnx_graph import Node
from weighbridge.formats.onnx_tensor import Constant
from weighbridge.ledger import numel
from weighbridge.ledger.errors import Unknown

_ALIKE = frozenset({"MatMulNBits", "MatMulNBitsMlp", "MatMulNBitsQkv"})


def elements_of(node: Node, at: int, constant: Constant | None, file: str) -> int | None:
    """How many weights the codes stand for.

    Raises:
        Unknown: codes that do not fit what the operator says of them.
    """
    if constant is None or constant.dtype is None:
        return None
    stored, say = numel(constant.shape), node.numbers.get
    if constant.dtype.block > 1:
        return None
    bits = say("bits", 4)
    if node.op in _ALIKE or node.op == "MatMulBnb4":
        rows = say("N") or (say("Nq") if at == 3 else say("Nkv")) or 0
        width, block = say("K", 0), say("block_size", 0)
        count = rows * width
        if node.op == "MatMulBnb4":
            fits = constant.nbytes == ceil(count / 2)
        else:
            fits = 0 < block <= 1 << 20 and constant.nbytes * 8 == rows * -(-width // block) * block * bits
        if not fits or count >= 1 << 60:
            raise Unknown(f"{file}: {constant.name!r} is packed in a way that does not fit {node.op}")
        return count
    if node.op == "QMoE":
        if any(say(f"fc{layer}_expert_weight_bits", 0) for layer in (1, 2, 3)):
            raise Unknown(f"{file}: experts packed with a width for each of their layers")
        bits = say("expert_weight_bits", 4)
    if bits not in (2, 4, 8):
        raise Unknown(f"{file}: {constant.name!r} is packed in {bits:,} bits")
    return stored * 8 // bits if constant.dtype.bits == 8 else stored

"""Which reader a file needs, by the bytes it begins with: names and endings may lie."""

from weighbridge.formats import safetensors
from weighbridge.formats.header import Header
from weighbridge.ledger import File
from weighbridge.ledger.errors import Malformed


def read_header(file: File, index: int) -> Header:
    """The header of a file, by the reader whose magic it begins with.

    Raises:
        Malformed: no model file, or a broken one.
    """
    start = file.read(0, 9)
    if start[8:] == b"{":  # first, since a header of 640 bytes begins like a pickle: 80 02
        return safetensors.read(file, index=index)
    if start[:4] == b"GGUF":
        from weighbridge.formats import gguf

        return gguf.read(file, index=index)
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        from weighbridge.formats import torch_file

        return torch_file.read(file, index=index)
    if start.startswith(b"version "):
        raise Malformed(f"{file.name} is a Git LFS pointer, not the file itself", fix="git lfs pull")
    if start.lower().startswith((b"<!doctype", b"<html")):
        raise Malformed(f"{file.name} is a web page, not a model", fix="download it again")
    if int.from_bytes(start[:8], "little") > safetensors.LARGEST_HEADER:
        raise Malformed(
            f"{file.name} is no model file",
            fix="safetensors, GGUF and PyTorch files are read, whatever they are called",
        )
    return safetensors.read(file, index=index)

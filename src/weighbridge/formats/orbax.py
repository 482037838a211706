"""Orbax checkpoints of JAX: a folder of arrays in chunks, each described by a small JSON text. The texts lie in a
database (`ocdbt`) or in a folder of each array's own; the chunks are never read.

Source: orbax-checkpoint 0.12; Zarr storage specifications 2 and 3.
"""

from collections.abc import Iterator, Mapping

from weighbridge.formats import ocdbt
from weighbridge.formats.dtype_names import dtype_named
from weighbridge.formats.folder import Repository, read_small
from weighbridge.formats.header import Header
from weighbridge.formats.plain_json import parse_json
from weighbridge.formats.pytree import judged_together, kind_of_leaf, role_of_leaf
from weighbridge.ledger import NOWHERE, DType, Row, Stated, numel
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Unknown

_TREE = "_METADATA"
_STEP = "_CHECKPOINT_METADATA"
_ARRAYS = ("/.zarray", "/zarr.json")
_LARGEST_TREE = 256 << 20
_MOST_VALUES = 20_000_000
_LARGEST_ARRAY = 1 << 20
_MOST_ARRAYS = 200_000
_MOST_DIMENSIONS = 32
_IN_FILES = frozenset({"jax.Array", "np.ndarray", "scalar"})
# Zarr 2 has NumPy's codes.
_CODES = {"f": "float", "i": "int", "u": "uint", "c": "complex"}


def place_of(repository: Repository) -> str | None:
    """The folder in `repository` that is a checkpoint, "" or as in "state/"; None where there is none.

    Raises:
        Refused: several, of which one has to be named.
    """
    paths = [name.rpartition("/") for name in repository.files]
    folders = {folder for folder, _, name in paths if name in (_TREE, ocdbt.MANIFEST)}
    folders = {folder for folder in folders if not folder.rpartition("/")[2].startswith("ocdbt.process_")}
    if "" in folders:
        return ""
    if not folders:
        steps = sorted(name.partition("/")[0] for name in repository.files if name.endswith(f"/{_STEP}"))
        if steps:
            raise Refused(
                f"{repository.location} holds steps of a training: {', '.join(steps[:8])}",
                fix=f"name one, as {repository.location.rstrip('/')}/{steps[-1]}",
            )
        return None
    nearest = min(folder.count("/") for folder in folders)
    found = sorted(folder for folder in folders if folder.count("/") == nearest)
    if len(found) > 1:
        raise Refused(
            f"{repository.location} holds several checkpoints: {', '.join(found[:8])}",
            fix=f"name one, as {repository.location.rstrip('/')}/{found[0]}",
        )
    return f"{found[0]}/"


def read_folder(repository: Repository, *, index: int = 0) -> Header:
    """The arrays of a checkpoint. Their values lie compressed in chunks: no tensor has a place.

    Raises:
        Malformed, Truncated: not what Orbax writes.
        NotFound: an array that the tree names is not there.
        Refused: several checkpoints; a compressed database, and nothing that decompresses is installed.
        Unknown: a type that is not known.
    """
    place = place_of(repository) or ""
    raw = read_small(repository, place + _TREE, largest=_LARGEST_TREE)
    tree = _tree(parse_json(raw, _TREE, most=_MOST_VALUES)) if raw is not None else {}
    rows: list[Row] = []
    kinds: dict[str, str] = {}
    roles: dict[str, str] = {}
    for name, text in _described(repository, place):
        path, said = tree.pop(name, (tuple(name.split(".")), ""))
        dtype, shape = _array(parse_json(text, name), name)
        if name in kinds or len(rows) >= _MOST_ARRAYS:
            raise Malformed(f"{repository.location} holds {name} twice, or more arrays than any model has")
        rows.append(Row(name, dtype, shape, index, NOWHERE, dtype.nbytes(numel(shape))))
        kind = kind_of_leaf(path, dtype)
        # A number of Python's own is a counter or a setting, whatever its type.
        kinds[name] = "buffer" if said == "scalar" and kind == "parameter" else kind
        role = role_of_leaf(name, shape)
        if role is not None:
            roles[name] = role
    lost = [name for name, (_, said) in tree.items() if said in _IN_FILES]
    if lost:
        raise NotFound(
            f"{repository.location} lacks {len(lost):,} arrays that its tree names, the first {lost[0][:100]}",
            fix="download it again",
        )
    if not rows:
        raise Malformed(f"{repository.location} holds no array")
    return Header(
        rows=rows,
        stated=Stated(kinds=judged_together(kinds), roles=roles),
        notes=["the arrays lie in compressed chunks: bytes are those of their types and shapes"],
        files=[repository.open(place + (_TREE if raw is not None else ocdbt.MANIFEST))],
    )


def _tree(metadata: Mapping[str, object]) -> dict[str, tuple[tuple[str, ...], str]]:
    """{name: (path of keys, type of value)} of every leaf."""
    found = {}
    leaves = metadata.get("tree_metadata")
    for leaf in leaves.values() if isinstance(leaves, dict) else ():
        try:
            path = tuple(str(key["key"]) for key in leaf["key_metadata"])
            found[".".join(path)] = path, str(leaf["value_metadata"]["value_type"])
        except (KeyError, TypeError):
            raise Malformed(f"{_TREE} has a leaf that is not described as Orbax does") from None
    return found


def _described(repository: Repository, place: str) -> Iterator[tuple[str, bytes]]:
    """(name, description) of every array."""
    if place + ocdbt.MANIFEST in repository.files:
        for key, value in ocdbt.entries(lambda name: repository.open(place + name), lambda key: key.endswith(_ARRAYS)):
            yield key.rpartition("/")[0], value
    for name in repository.files:
        if name.startswith(place) and name.endswith(_ARRAYS):
            raw = read_small(repository, name, largest=_LARGEST_ARRAY)
            if raw is not None:
                yield name.removeprefix(place).rpartition("/")[0], raw


def _array(described: Mapping[str, object], name: str) -> tuple[DType, tuple[int, ...]]:
    shape, said = described.get("shape"), described.get("data_type", described.get("dtype"))
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not isinstance(said, str):
        raise Malformed(f"{name} is not described as Zarr does")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 40:
            raise Malformed(f"{name} has a dimension of {str(size)[:40]}")
    dtype = dtype_named(_full(said))
    if dtype is None:
        raise Unknown(f"{name} is of type {said[:40]!r}", fix="a newer Weighbridge may know it")
    return dtype, tuple(shape)


def _full(said: str) -> str:
    """NumPy's code as a name: `<f4` is float32."""
    order, code, width = said[:1], said[1:2], said[2:]
    if order not in ("<", ">", "|") or not width.isdecimal() or len(width) > 2:
        return said
    return "bool" if code == "b" else f"{_CODES.get(code, code)}{8 * int(width)}"

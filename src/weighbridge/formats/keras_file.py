"""Keras models: `.keras` archives, `.weights.h5` and `.h5` files, from the headers of their datasets.

Which variables are learned is told by the layer's class: Keras 3 files number the variables of a layer
(`layers/batch_normalization/vars/3`), older files name them. Source: keras 3.15 `saving_lib`, `legacy/saving`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from weighbridge.formats import hdf5, keras_quantized
from weighbridge.formats.archive import Archive
from weighbridge.formats.header import Header
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import NOWHERE, File, Row, Stated, numel
from weighbridge.ledger.errors import Malformed, Refused, Unknown

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_LARGEST_CONFIG = 16 << 20
_DEEPEST = 32
OPTIMIZER = "optimizer_state"
_KERNEL = ("kernel", "bias")
_SCALE = ("gamma", "beta")
_RECURRENT = ("kernel", "recurrent_kernel", "bias")
# class -> (role, its learned variables, those it keeps beside them), in the order in which they are made
CLASSES: Mapping[str, tuple[str | None, tuple[str, ...], tuple[str, ...]]] = {
    "dense": ("ffn", _KERNEL, ()),
    "einsum_dense": ("ffn", _KERNEL, ()),
    "multi_head_attention": ("attention", (), ()),
    "grouped_query_attention": ("attention", (), ()),
    "attention": ("attention", ("scale",), ()),
    "additive_attention": ("attention", ("scale",), ()),
    "embedding": ("embedding", ("embeddings",), ()),
    "layer_normalization": ("norm", _SCALE, ()),
    "group_normalization": ("norm", _SCALE, ()),
    "rms_normalization": ("norm", ("scale",), ()),
    "batch_normalization": ("norm", _SCALE, ("moving_mean", "moving_variance")),
    "normalization": (None, (), ("mean", "variance", "count")),
    "spectral_normalization": (None, (), ("vector_u",)),
    "seed_generator": (None, (), ("seed_generator_state",)),
    "p_re_lu": ("ffn", ("alpha",), ()),
    "lstm_cell": ("ssm", _RECURRENT, ()),
    "gru_cell": ("ssm", _RECURRENT, ()),
    "simple_rnn_cell": ("ssm", _RECURRENT, ()),
    **{f"conv_lstm{n}d_cell": ("ssm", _RECURRENT, ()) for n in (1, 2, 3)},
    **{f"conv{n}d": ("conv", _KERNEL, ()) for n in (1, 2, 3)},
    **{f"conv{n}d_transpose": ("conv", _KERNEL, ()) for n in (1, 2, 3)},
    **{f"depthwise_conv{n}d": ("conv", _KERNEL, ()) for n in (1, 2)},
    **{f"separable_conv{n}d": ("conv", ("depthwise_kernel", "pointwise_kernel", "bias"), ()) for n in (1, 2)},
}
_NOT_LEARNED = ("moving_mean", "moving_variance", "vector_u", "seed_generator_state")
_VARIABLE = re.compile(r"(?:(?P<layer>.+)/)?vars/(?P<at>\d{1,6})")
_ATTENTION = re.compile(r"(^|/)(multi_head|grouped_query)_attention(_\d+)?(/|$)")
_NUMBER = re.compile(r"(_\d+)$")


class Layer(NamedTuple):
    """What a model's config says of a layer; `mode` is how it is quantized."""

    title: str
    trainable: bool
    mode: str | None


class Judged(NamedTuple):
    """What a variable is. Without a kind, its name decides."""

    name: str
    kind: str | None = None
    role: str | None = None
    frozen: bool = False
    elements: int | None = None


Layers = Mapping[tuple[str, ...], Layer]  # by their names from the outside in
_NO_LAYER = Layer("", True, None)


def read_keras(file: File, *, index: int = 0) -> Header:
    """The model in a `.keras` archive.

    Raises:
        Malformed: not such an archive.
        Unknown: variables of which nobody tells whether they are learned.
    """
    archive = Archive(file)
    if _WEIGHTS not in archive or _CONFIG not in archive:
        raise Malformed(f"{file.name} has no {_WEIGHTS} with a {_CONFIG}", fix="save it again with model.save")
    if not archive.is_stored(_WEIGHTS):
        raise Refused(f"{file.name}: its {_WEIGHTS} is compressed", fix="zip it without compression, as Keras does")
    config = parse_json(archive.start(_CONFIG, _LARGEST_CONFIG), f"{file.name}: {_CONFIG}")
    return _header(file, index, archive.offset(_WEIGHTS), archive.size(_WEIGHTS), config)


def read(file: File, *, index: int = 0) -> Header:
    """The arrays of an `.h5` file: Keras 3 weights, an older model, or any others, judged by their names then.

    Raises:
        Malformed: a broken file.
        Unknown: a newer layout of HDF5, or variables of which nobody tells whether they are learned.
    """
    return _header(file, index, 0, file.size, None)


def _header(file: File, index: int, base: int, size: int, config: object) -> Header:
    found = hdf5.contents(lambda offset, length: file.read(base + offset, length), size, file.name)
    if not found.datasets:
        raise Malformed(f"{file.name} holds no array")
    numbered = all(_VARIABLE.fullmatch(path) for path in found.datasets)
    if config is None and ("", "model_config") in found.texts:
        config = parse_json(found.texts["", "model_config"].encode(), f"{file.name}: model_config")
    layers = dict(_layers(config))
    judge = _Numbered(found, layers, file.name) if numbered else _Named(layers)
    rows: list[Row] = []
    kinds: dict[str, str] = {}
    roles: dict[str, str] = {}
    elements: dict[str, int] = {}
    frozen: set[str] = set()
    names: set[str] = set()
    for path, dataset in found.datasets.items():
        judged = judge(path, dataset)
        name = path if judged.name in names else judged.name  # two layers of one name
        names.add(name)
        offset = base + dataset.offset if dataset.offset is not None else NOWHERE
        rows.append(Row(name, dataset.dtype, dataset.shape, index, offset, dataset.dtype.nbytes(numel(dataset.shape))))
        if judged.kind is not None:
            kinds[name] = judged.kind
        if judged.role is not None:
            roles[name] = judged.role
        if judged.elements is not None:
            elements[name] = judged.elements
        if judged.frozen:
            frozen.add(name)
    apart = sum(dataset.offset is None and numel(dataset.shape) > 0 for dataset in found.datasets.values())
    notes = [f"{apart:,} of its arrays lie in chunks: bytes are those once unpacked"] if apart else []
    stated = Stated(kinds=kinds, roles=roles, elements=elements, frozen=frozenset(frozen))
    return Header(rows=rows, stated=stated, notes=notes, format="keras")


class _Numbered:
    """Variables of Keras 3: `layers/dense/vars/0`, with the layer's own name in an attribute."""

    def __init__(self, found: hdf5.Contents, layers: Layers, file: str) -> None:
        self._texts, self._layers, self._file = found.texts, layers, file
        self._shapes: defaultdict[str, dict[int, tuple[int, ...]]] = defaultdict(dict)
        for path, dataset in found.datasets.items():
            group, _, number = path.rpartition("/")
            self._shapes[group][int(number)] = dataset.shape

    def __call__(self, path: str, dataset: hdf5.Dataset) -> Judged:
        group, _, number = path.rpartition("/")
        layer = group.removesuffix("vars").rstrip("/")
        if layer.partition("/")[0] == "optimizer":
            return Judged(path, OPTIMIZER)
        names, at = self._names(layer), int(number)
        mode = self._layers.get(names, _NO_LAYER).mode
        if mode is not None:
            return self._quantized(names, group, at, mode)
        if dataset.dtype.name in ("I8", "U8"):
            raise Unknown(f"{self._file}: {path} holds codes of a quantized layer", fix="save the model as .keras")
        role, learned, kept = self._class(layer, group, dataset)
        plain = len(self._shapes[group]) - len(kept)
        if at >= plain:
            return Judged("/".join((*names, kept[at - plain])), "buffer")
        variable = learned[at] if len(learned) == plain else f"vars/{at}"
        return Judged("/".join((*names, variable)), "parameter", role, _frozen(names, self._layers))

    def _quantized(self, names: tuple[str, ...], group: str, at: int, mode: str) -> Judged:
        title, shapes = self._layers[names].title, self._shapes[group]
        listed = keras_quantized.variables(title, mode, len(shapes))
        if listed is None or set(shapes) != set(range(len(listed))):
            raise Unknown(f"{self._file}: {'/'.join(names)} is quantized to {mode} in a way that is not known")
        name, variable = "/".join((*names, listed[at])), listed[at]
        extra = keras_quantized.extra_of(variable)
        if extra is not None:
            return Judged(name, extra)
        role, is_frozen = CLASSES[title][0], _frozen(names, self._layers)
        if variable not in keras_quantized.CODES:
            return Judged(name, "parameter", role, is_frozen)
        servants = {listed[number]: shape for number, shape in shapes.items()}
        elements = keras_quantized.elements(mode, shapes[at], servants)
        if elements is None:
            raise Unknown(f"{self._file}: how many values the codes of {name} stand for cannot be told")
        return Judged(name, "parameter", role, is_frozen, elements)

    def _names(self, layer: str) -> tuple[str, ...]:
        """The names of a layer and those around it, as its model calls them."""
        found, at = [], ""
        for part in layer.split("/"):
            at = f"{at}/{part}" if at else part
            own = self._texts.get((f"{at}/vars", "name"))
            if own is not None:
                found.append(own)
        return tuple(found) or tuple(layer.split("/"))

    def _class(
        self, layer: str, group: str, dataset: hdf5.Dataset
    ) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
        count = len(self._shapes[group])
        if dataset.dtype.name == "U32" and count == 1:
            return CLASSES["seed_generator"]
        parent, _, last = layer.rpartition("/")
        # In a list of layers the group is called after the class; elsewhere after an attribute, and then the config
        # tells the class, or a layer of Keras's own that has such parts.
        title = _NUMBER.sub("", last) if parent.rpartition("/")[2] == "layers" else ""
        title = title or self._layers.get(self._names(layer), _NO_LAYER).title
        if not title and _ATTENTION.search(parent):
            return ("attention", _KERNEL, ()) if count <= len(_KERNEL) else ("attention", (), ())
        if not title and last == "cell":
            title = _NUMBER.sub("", self._texts.get((group, "name"), ""))
        role, learned, kept = CLASSES.get(title, (None, (), ()))
        if title not in CLASSES or not len(kept) <= count <= len(learned) + len(kept):
            raise Unknown(
                f"{self._file}: which of {count} variables of {layer or 'the model itself'} are learned cannot be told",
                fix="load it with Keras, and weighbridge.show(model)",
            )
        return role, learned, kept


class _Named:
    """Variables of older files, by their paths: `model_weights/dense/dense/kernel:0`."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers

    def __call__(self, path: str, dataset: hdf5.Dataset) -> Judged:
        if path.partition("/")[0] == "optimizer_weights":
            return Judged(path, OPTIMIZER)
        if dataset.dtype.name in ("I8", "U8"):
            raise Unknown(f"{path} holds codes of a quantized layer", fix="save the model as .keras")
        parts = path.removeprefix("model_weights/").split("/")
        # The layer's group holds its variables under their full names, which begin with the layer's again.
        parts = parts[1:] if len(parts) > 2 else parts
        name, last = "/".join(parts), parts[-1].partition(":")[0]
        if last in _NOT_LEARNED:
            return Judged(name, "buffer")
        if last.endswith(("_scale", "_amax_history")):
            raise Unknown(f"{name} belongs to a quantized layer", fix="save the model unquantized")
        role = None
        for end in range(1, len(parts)):
            title = self._layers.get(tuple(parts[:end]), _NO_LAYER).title
            role = role if role == "attention" else CLASSES.get(title, (role,))[0]
            if title in CLASSES and last in CLASSES[title][2]:
                return Judged(name, "buffer")
        return Judged(name, None, role, _frozen(tuple(parts[:-1]), self._layers))


def _frozen(names: tuple[str, ...], layers: Layers) -> bool:
    """Whether the layer of that name, or one around it, is not trained."""
    return any(not layers.get(names[:end], _NO_LAYER).trainable for end in range(1, len(names) + 1))


def snake(name: str) -> str:
    """A class's name as Keras writes it in files."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)).lower()


def _layers(config: object, outer: tuple[str, ...] = (), depth: int = 0) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """The layers that a model's config lists, by names. The outermost model's own name is left out."""
    if not isinstance(config, dict) or not isinstance(inner := config.get("config"), dict) or depth > _DEEPEST:
        return
    if depth:
        outer = (*outer, str(inner.get("name")))
        title = snake(str(config.get("class_name")))
        yield outer, Layer(title, inner.get("trainable") is not False, _mode(inner.get("dtype")))
    listed: list[Any] = [*inner["layers"]] if isinstance(inner.get("layers"), list) else []
    for layer in [*listed, inner.get("layer")]:
        yield from _layers(layer, outer, depth + 1)


def _mode(policy: object) -> str | None:
    """How a layer of that policy of types is quantized: "int8", "int4", ..."""
    config = policy.get("config") if isinstance(policy, dict) else None
    mode = config.get("mode") if isinstance(config, dict) else None
    return mode.partition("/")[0] if isinstance(mode, str) else None

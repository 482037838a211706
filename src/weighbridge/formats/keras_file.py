"""Keras models: `.keras` archives, `.weights.h5` and `.h5` files, from the headers of their datasets.

Which variables are learned is told by the layer's class: Keras 3 files number the variables of a layer
(`layers/batch_normalization/vars/3`), older files name them. Source: keras 3.15 `saving_lib`, `legacy/saving`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from weighbridge.formats import hdf5, keras_quantized
from weighbridge.formats.archive import Archive
from weighbridge.formats.header import Header
from weighbridge.formats.keras_config import Layers
from weighbridge.formats.plain_json import parse_json
from weighbridge.ledger import NOWHERE, File, Row, Stated, numel
from weighbridge.ledger.errors import Malformed, Refused, Unknown

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_LARGEST_CONFIG = 16 << 20
OPTIMIZER, TIED_COPIES = "optimizer_state", "tied_copies"
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
    "reversible_embedding": ("embedding", ("embeddings", "reverse_embeddings"), ()),
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
    "conv_lstm_cell": ("ssm", _RECURRENT, ()),
    **{f"conv{n}d": ("conv", _KERNEL, ()) for n in (1, 2, 3)},
    **{f"conv{n}d_transpose": ("conv", _KERNEL, ()) for n in (1, 2, 3)},
    **{f"depthwise_conv{n}d": ("conv", _KERNEL, ()) for n in (1, 2)},
    **{f"separable_conv{n}d": ("conv", ("depthwise_kernel", "pointwise_kernel", "bias"), ()) for n in (1, 2)},
}
# Layers that hold weights in parts of their own, and no other variables.
_HOLDERS = frozenset(["lstm", "gru", "simple_rnn", "rnn", "stacked_rnn_cells", "bidirectional", "time_distributed"])
_HOLDERS |= {"conv_lstm1d", "conv_lstm2d", "conv_lstm3d", "sequential", "functional", "model"}
# Names that are learned in whatever layer: others in a class that is not Keras's own may be anything.
_LEARNED = frozenset(name for _, learned, _ in CLASSES.values() for name in learned) - {"scale"}
_LORA = ("lora_kernel_a", "lora_kernel_b", "lora_embeddings_a", "lora_embeddings_b")
_ADAPTED = ("kernel", "embeddings")
_NOT_LEARNED = ("moving_mean", "moving_variance", "vector_u", "seed_generator_state")
_VARIABLE = re.compile(r"(?:(?P<layer>.+)/)?vars/(?P<at>\d{1,6})")
_ATTENTION = re.compile(r"(^|/)(multi_head|grouped_query)_attention(_\d+)?(/|$)")
_NUMBER = re.compile(r"(_\d+)$")


class Judged(NamedTuple):
    """What a variable is. Without a kind, its name decides."""

    name: str
    kind: str | None = None
    role: str | None = None
    frozen: bool = False
    elements: int | None = None


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
    layers = Layers(config)
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
    if not layers.complete:
        notes.append("the file does not say which layers are frozen: what is learned in them counts as trainable")
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
        if layer.partition("/")[0] == "metrics":  # of Keras 2: what the last epoch came to
            return Judged(path, "buffer")
        names, at = self._names(layer), int(number)
        mode = self._layers.of(names).mode
        if mode is not None:
            return self._quantized(names, group, at, mode)
        if dataset.dtype.name in ("I8", "U8"):
            raise Unknown(f"{self._file}: {path} holds codes of a quantized layer", fix="save the model as .keras")
        if len(self._shapes[group]) == 2 and self._title(layer, group) == "spectral_normalization":
            # The kernel of the layer that it wraps, stored there too, and its own vector.
            return Judged(path, TIED_COPIES if at == 0 else "buffer")
        role, learned, kept = self._class(layer, group, dataset)
        plain = len(self._shapes[group]) - len(kept)
        if at >= plain:
            return Judged("/".join((*names, kept[at - plain])), "buffer")
        variable = learned[at] if len(learned) == plain else f"vars/{at}"
        # What its adapter added was stored into the weight, which stays frozen once it is loaded.
        adapted = self._layers.of(names).lora and variable in _ADAPTED
        return Judged("/".join((*names, variable)), "parameter", role, adapted or self._layers.frozen(names))

    def _quantized(self, names: tuple[str, ...], group: str, at: int, mode: str) -> Judged:
        title, shapes = self._layers.of(names).title, self._shapes[group]
        listed = keras_quantized.variables(title, mode, len(shapes))
        if listed is None or set(shapes) != set(range(len(listed))):
            raise Unknown(f"{self._file}: {'/'.join(names)} is quantized to {mode} in a way that is not known")
        name, variable = "/".join((*names, listed[at])), listed[at]
        extra = keras_quantized.extra_of(variable)
        if extra is not None:
            return Judged(name, extra)
        role, is_frozen = CLASSES[title][0], self._layers.frozen(names)
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
        groups = tuple(layer.split("/"))
        return tuple(found) or self._layers.named(groups) or groups

    def _class(
        self, layer: str, group: str, dataset: hdf5.Dataset
    ) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
        count = len(self._shapes[group])
        if dataset.dtype.name == "U32" and count == 1:
            return CLASSES["seed_generator"]
        title = self._title(layer, group)
        around = layer.rpartition("/")[0]
        if not title and _ATTENTION.search("/".join([around, *self._names(around)])):
            return ("attention", _KERNEL, ()) if count <= len(_KERNEL) else ("attention", (), ())
        role, learned, kept = CLASSES.get(title, (None, (), ()))
        if title not in CLASSES or not len(kept) <= count <= len(learned) + len(kept):
            raise Unknown(
                f"{self._file}: which of {count} variables of {layer or 'the model itself'} are learned cannot be told",
                fix="load it with Keras, and weighbridge.show(model)",
            )
        return role, learned, kept

    def _title(self, layer: str, group: str) -> str:
        """A layer's class: as the config has it; else as its group is called in a list of layers; else by the name
        that Keras gave it after its class, or that a group in another list has, where the shapes bear it out.
        """
        parent, _, last = layer.rpartition("/")
        said = self._layers.of(self._names(layer))
        if said.title:
            return "" if said.custom else said.title
        called = _NUMBER.sub("", last)
        if parent.rpartition("/")[2] in ("layers", "cells"):
            return called
        guesses = {called, _NUMBER.sub("", self._texts.get((group, "name"), ""))} & CLASSES.keys()
        shapes = [self._shapes[group][at] for at in sorted(self._shapes[group])]
        return guesses.pop() if len(guesses) == 1 and _fits(next(iter(guesses)), shapes) else ""


def _fits(title: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether variables may be those of a layer of that class: a kernel with its bias, scales of one width."""
    role, learned, _ = CLASSES[title]
    if role == "norm":
        return len(set(shapes)) == 1
    if learned == _KERNEL and "depthwise" not in title and len(shapes) == 2:
        return len(shapes[0]) > 1 and len(shapes[1]) > 0 and shapes[1][-1] in shapes[0][-2:]
    return len(shapes[0]) > 1


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
        # A layer's group is called after it and holds its variables under their full names, which may begin with the
        # model's name, and have the layer's again.
        around = self._layers.around(tuple(parts[:-1]))
        parts = parts[1:] if len(parts) > 2 else parts
        name, last = "/".join(parts), parts[-1].partition(":")[0]
        if last in _NOT_LEARNED:
            return Judged(name, "buffer")
        if last in _LORA:
            return Judged(name, "parameter", "adapter")
        if last.endswith(("_scale", "_amax_history")):
            raise Unknown(f"{name} belongs to a quantized layer", fix="save the model unquantized")
        role = None
        for layer in around:
            role = role if role == "attention" else CLASSES.get(layer.title, (role,))[0]
        own = around[-1] if around else None
        if own is not None and own.title in CLASSES and last in CLASSES[own.title][2]:
            return Judged(name, "buffer")
        unlisted = own is None and self._layers.any
        foreign = unlisted or (own is not None and (own.custom or own.title not in CLASSES.keys() | _HOLDERS))
        if foreign and last not in _LEARNED:
            raise Unknown(
                f"whether {name} is learned cannot be told: it is of a layer of its author's own",
                fix="load it with Keras, and weighbridge.show(model)",
            )
        adapted = own is not None and own.lora and last in _ADAPTED
        return Judged(name, None, role, adapted or any(not layer.trainable for layer in around))

"""What the config of a Keras model says of its layers: names, classes, what is trained, how they are quantized.

Source: keras 3.15 `serialization_lib`, `saving_lib`; tf_keras 2.21 writes the same without names in the groups.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_DEEPEST = 32
_NUMBER = re.compile(r"(_\d+)$")


class Layer(NamedTuple):
    """What a model's config says of a layer; `mode` is how it is quantized, `custom` that its class is no one of
    Keras's own, whatever it is called.
    """

    title: str
    trainable: bool = True
    mode: str | None = None
    custom: bool = False
    lora: bool = False


Path = tuple[str, ...]  # names of a layer and those around it, from the outside in
NO_LAYER = Layer("")


class Layers:
    """The layers that a model's config lists; none where there is no config."""

    def __init__(self, config: object) -> None:
        self._layers: dict[Path, Layer] = {}
        self._groups: dict[Path, Path] = {}  # how saving_lib calls a layer's group: where tf_keras names none
        self._by_first: dict[str, list[Path]] = {}
        for names, groups, layer in _walk(config, (), (), 0):
            self._layers[names] = layer
            self._groups[groups] = names
            self._by_first.setdefault(names[0], []).append(names)

    @property
    def any(self) -> bool:
        """Whether there is a config that lists layers."""
        return bool(self._layers)

    @property
    def complete(self) -> bool:
        """Whether the config lists all layers: a class of its author's own may hold others."""
        return bool(self._layers) and not any(layer.custom for layer in self._layers.values())

    def of(self, names: Path) -> Layer:
        """The layer of that path."""
        return self._layers.get(names, NO_LAYER)

    def named(self, groups: Path) -> Path | None:
        """The names of the layer that lies in these groups."""
        for end in range(len(groups), 0, -1):
            if groups[:end] in self._groups:
                return (*self._groups[groups[:end]], *groups[end:])
        return None

    def around(self, parts: Path) -> list[Layer]:
        """The layers on the way to a variable, outermost first: `parts` begins with a layer's name, and may hold names
        of models between those of layers.
        """
        found = []
        for names in self._by_first.get(parts[0], ()) if parts else ():
            rest = iter(parts[1:])
            if all(name in rest for name in names[1:]):
                found.append(names)
        return [self._layers[names] for names in sorted(found, key=len)]

    def frozen(self, names: Path) -> bool:
        """Whether the layer of that path, or one around it, is not trained."""
        return any(not self.of(names[:end]).trainable for end in range(1, len(names) + 1))


def snake(name: str) -> str:
    """A class's name as Keras writes it in files."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)).lower()


def _walk(config: object, names: Path, groups: Path, depth: int) -> Iterator[tuple[Path, Path, Layer]]:
    """(names, groups, layer), outer before inner. The outermost model's own name is left out."""
    if not isinstance(config, dict) or not isinstance(inner := config.get("config"), dict) or depth > _DEEPEST:
        return
    if depth:
        names = (*names, str(inner.get("name")))
        yield names, groups, _layer(config, inner)
    listed: list[Any] = [*inner["layers"]] if isinstance(inner.get("layers"), list) else []
    used: dict[str, int] = {}
    for layer in listed:
        title = snake(_class_name(layer))
        at = used[title] = used.get(title, -1) + 1
        yield from _walk(layer, names, (*groups, "layers", f"{title}_{at}" if at else title), depth + 1)
    yield from _walk(inner.get("layer"), names, (*groups, "layer"), depth + 1)


def _class_name(layer: object) -> str:
    return str(layer.get("class_name")).rpartition(">")[2] if isinstance(layer, dict) else ""


def _layer(config: Mapping[str, Any], inner: Mapping[str, Any]) -> Layer:
    registered, module = str(config.get("class_name")), config.get("module")
    foreign = "module" in config and not (isinstance(module, str) and module.partition(".")[0] in ("keras", "tf_keras"))
    return Layer(
        snake(_class_name(config)),
        inner.get("trainable") is not False,
        _mode(inner.get("dtype")),
        foreign or ">" in registered,
        isinstance(inner.get("lora_rank"), int),
    )


def _mode(policy: object) -> str | None:
    """How a layer of that policy of types is quantized: "int8", "int4", ..."""
    config = policy.get("config") if isinstance(policy, dict) else None
    mode = config.get("mode") if isinstance(config, dict) else None
    return mode.partition("/")[0] if isinstance(mode, str) else None

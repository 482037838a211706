"""What a PyTorch checkpoint holds: which tensors are the model, which are optimizer state, which are something else.

`torch.save` writes any object. By custom that is a flat state dict, or a dictionary with the state dict under one of a
few keys and the rest of the run beside it, or a whole `nn.Module`, whose state dict then has to be derived.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from weighbridge.formats.inert import Meter, Record
from weighbridge.formats.torch_names import StoredTensor, names
from weighbridge.ledger.errors import Refused, Unknown

Named = tuple[str, StoredTensor]

# A dictionary under one of those may be a wrapper once more.
_WRAPPED_AGAIN = frozenset(("state_dict", "model_state_dict", "model", "module"))

_DEEPEST = 100
_MOST_WRAPPERS = 4
_ONLY_ROUND = frozenset({"Quantize", "DeQuantize", "FloatFunctional", "QFunctional", "FXFloatFunctional"})
_LEAVES = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A checkpoint sorted out. `path` is the keys that led to the model.

    `buffers` names those of `model` that a pickled module keeps as buffers; a state dict does not tell.
    `optimizers` are the optimizers' own state dicts, `rest` what beside the model holds no tensors.
    """

    path: list[str] = field(default_factory=list)
    model: list[Named] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    optimizer: list[Named] = field(default_factory=list)
    other: dict[str, list[Named]] = field(default_factory=dict)
    optimizers: list[object] = field(default_factory=list)
    rest: dict[str, object] = field(default_factory=dict)


def sort_out(root: object, meter: Meter) -> Contents:
    """The contents of what `torch.save` was given.

    Raises:
        Refused: nested deeper, or tangled more, than any real checkpoint.
        Unknown: a module's parameter of a class whose data cannot be found.
    """
    contents = Contents()
    if is_optimizer(root):
        contents.optimizers.append(root)
    else:
        model = _find_model(root, contents, meter)
        apart = {id(optimizer) for optimizer in contents.optimizers}
        walk = _Walk(contents.model, meter, buffers=contents.buffers, apart=apart)
        walk.into(model, "" if _has_children(model) else "tensor")
    for place, optimizer in enumerate(contents.optimizers):
        prefix = str(place) if len(contents.optimizers) > 1 else ""
        _Walk(contents.optimizer, meter, optimizers=True).into(optimizer, prefix)
    return contents


def _find_model(root: object, contents: Contents, meter: Meter) -> object:
    """The state dict, module or tensor that is the model; what lies beside it goes where it belongs."""
    value = root
    while (
        len(contents.path) < _MOST_WRAPPERS
        and _has_children(value)
        and module_state(value) is None
        and not _is_script(value)
    ):
        groups: dict[str, object] = {}
        tensors: dict[str, StoredTensor] = {}
        for key, child in children(value, meter):
            meter.spend(64)
            name = str(key)
            if type(child) is StoredTensor:
                tensors[name] = child
            elif value is root and _is_optimizer_key(name) and _has_children(child):
                contents.optimizers.extend(_optimizers_in(child, meter))
            elif is_optimizer(child):
                contents.optimizers.append(child)
            elif _holds_tensors(child, meter):
                groups[name] = child
            else:
                contents.rest[name] = child
        chosen = _choose(groups, alone=not tensors, outermost=value is root)
        if chosen is None:
            break
        for name, child in (tensors | groups).items():
            if name != chosen:
                _Walk(contents.other.setdefault(name, []), meter).into(child, "" if _has_children(child) else name)
        contents.path.append(chosen)
        value = groups[chosen]
    return value


def _choose(groups: dict[str, object], *, alone: bool, outermost: bool) -> str | None:
    """The group that is the model; None when all of it is."""
    if outermost:
        rank = names().model_keys
        known = min((key for key in groups if key in rank), key=rank.__getitem__, default=None)
        if known is not None:
            return known
    if alone and len(groups) == 1:
        (key,) = groups
        # Inside a model, one group alone may be its only submodule: that is part of the names.
        return key if outermost or key in _WRAPPED_AGAIN else None
    return None


def children(value: object, meter: Meter) -> Iterator[tuple[object, object]]:
    """(key, value) of what a container or record holds."""
    if isinstance(value, Record):
        # State with slots is a pair of dictionaries.
        states = value.state[:2] if isinstance(value.state, tuple) else (value.state,)
        for held in (*states, value.items):
            if isinstance(held, dict | list):
                yield from children(held, meter)
    elif isinstance(value, dict):
        for place, (key, child) in enumerate(value.items()):
            meter.spend(24)
            yield key if isinstance(key, _LEAVES) else place, child
    elif isinstance(value, list | tuple):
        for place, child in enumerate(value):
            meter.spend(24)
            yield place, child


def _has_children(value: object) -> bool:
    return type(value) in (dict, list, tuple, Record)


def module_state(value: object) -> dict[object, object] | None:
    """The attributes of a pickled `nn.Module`; None for anything else."""
    state = value.state if isinstance(value, Record) else None
    if isinstance(state, dict) and all(isinstance(state.get(own), dict) for own in ("_parameters", "_modules")):
        return state
    return None


def _is_script(value: object) -> bool:
    """Whether a record is a module of TorchScript, whose attributes are its tensors and submodules."""
    return isinstance(value, Record) and value.type.module.partition(".")[0] == "__torch__"


def is_optimizer(value: object) -> bool:
    """Whether a value is an optimizer's state dict, or an optimizer pickled whole."""
    held = value.state if isinstance(value, Record) else value
    return isinstance(held, dict) and isinstance(held.get("param_groups"), list) and "state" in held


def _is_optimizer_key(key: str) -> bool:
    return "optim" in key.lower() or key in ("opt", "opt_state")


def _optimizers_in(value: object, meter: Meter) -> list[object]:
    """What lies under an optimizer's key: one optimizer, or a list of them."""
    return [child for _, child in children(value, meter)] if type(value) in (list, tuple) else [value]


def _holds_tensors(value: object, meter: Meter) -> bool:
    """Whether a tensor lies anywhere beneath."""
    waiting, seen = [value], set()
    while waiting:
        found = waiting.pop()
        if type(found) is StoredTensor:
            return True
        if _has_children(found) and id(found) not in seen:
            seen.add(id(found))
            for _, child in children(found, meter):
                if not isinstance(child, _LEAVES):
                    meter.spend(64)
                    waiting.append(child)
    return False


class _Walk:
    """Names every tensor beneath a value, as `state_dict()` would where there is a module."""

    def __init__(
        self,
        found: list[Named],
        meter: Meter,
        *,
        buffers: list[str] | None = None,
        apart: Set[int] = frozenset(),
        optimizers: bool = False,
    ) -> None:
        """`found` and `buffers` are filled. What `apart` identifies is left out, and optimizers unless wanted."""
        self._found = found
        self._meter = meter
        self._buffers = buffers
        self._apart = apart
        self._optimizers = optimizers
        self._above: set[int] = set()
        self._seen: set[int] = set()

    def into(self, value: object, name: str) -> None:
        """Everything beneath `value`, which is called `name`."""
        self._meter.spend(128 + 2 * len(name))
        if type(value) is StoredTensor:
            self._meter.spend(360)
            self._found.append((name, value))
            return
        _refuse_lost_tensor(value, name)
        if not _has_children(value) or id(value) in self._above or id(value) in self._apart:
            return
        if is_optimizer(value) and not self._optimizers:
            return
        if len(self._above) > _DEEPEST:
            raise Refused(f"{self._meter.name}: its pickle nests deeper than {_DEEPEST} levels")
        module = module_state(value)
        if type(value) is Record and module is None:
            # Objects refer to one another in every direction; only modules have several names by right.
            if id(value) in self._seen:
                return
            self._seen.add(id(value))
        self._above.add(id(value))
        if module is not None:
            self._into_module(module, name)
        else:
            for key, child in children(value, self._meter):
                if not isinstance(child, _LEAVES):
                    self.into(child, _join(name, key))
        self._above.discard(id(value))

    def _into_module(self, state: dict[object, object], name: str) -> None:
        transient = {key for _, key in children(state.get("_non_persistent_buffers_set"), self._meter)}
        for key, child in children(state["_parameters"], self._meter):
            self._own(child, _join(name, key))
        for key, child in children(state.get("_buffers"), self._meter):
            if child is not None and key not in transient:
                self._own(child, _join(name, key))
                if self._buffers is not None:
                    self._buffers.append(_join(name, key))
        for key, child in children(state["_modules"], self._meter):
            self.into(child, _join(name, key))

    def _own(self, child: object, name: str) -> None:
        """A parameter or buffer of a module: a tensor, or None where the module has the name alone."""
        if child is None:
            return
        if type(child) is not StoredTensor:
            kind = str(child.type) if isinstance(child, Record) else type(child).__name__
            raise Unknown(f"{self._meter.name}: {name!r} is a {kind}, whose data is not where a tensor's is")
        self.into(child, name)


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _refuse_lost_tensor(value: object, name: str) -> None:
    """A tensor that was pickled in a way that is not read must not go uncounted."""
    if isinstance(value, Record) and ".nn.quantized." in value.type.module and value.type.name not in _ONLY_ROUND:
        # Their script keeps weights in the form of their kernels.
        raise Unknown(f"{name!r} is a quantized {value.type.name}", fix="show the model before it is quantized")
    if (
        isinstance(value, Record)
        and value.type.module.partition(".")[0] == "torch"
        and value.type.name.endswith(("Tensor", "Parameter", "Buffer"))
    ):
        raise Unknown(f"{name!r} is a {value.type}, written in a way that PyTorch gave up", fix="save it again")

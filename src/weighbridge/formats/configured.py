"""A ledger from a config.json alone: by the blueprint of its family, else by transformers on PyTorch's meta device."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

from weighbridge.formats import config as configs
from weighbridge.formats import naming
from weighbridge.formats.blueprints import NotCovered, Settings, build, class_of, family_of, type_of_class, types
from weighbridge.formats.closed_form import closed_form
from weighbridge.ledger import DTYPES, DType, Kind, Ledger, Rows, Source, Stated, kind_of
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Unknown

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float": "F32",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_BUFFER_DTYPE = "F32"
_ANYWHERE = ("torch_dtype", "quantization_config", "auto_map", "rope_scaling")  # fields that no class declares
_LARGEST = 1 << 62


def ledger_of(
    config: Mapping[str, object], *, location: str, name: str, version: str | None = None, asked: Iterable[str] = ()
) -> Ledger:
    """The model that a config describes, with every tensor's name and shape, though it has no values. `asked` are
    paths of fields that someone set: they should be fields that there are.

    Raises:
        Refused: a field that was set, and that the config's class does not have.
        Malformed: a field that is missing, of the wrong kind, or contradicts another, with its name.
        Unknown: a model type, class or choice that no blueprint knows, and transformers is not there or does not know.
    """
    model_type, class_name = _asked(config)
    notes: list[str] = []
    metadata: dict[str, object] = {}
    if model_type is None and class_name is None:
        raise NotFound(
            f"{location} has no weights, and its config.json states neither model_type nor architectures",
            fix="download the weights, or --set model_type=TYPE",
        )
    try:
        if model_type is None:
            raise NotCovered(f"config.json states no model_type, and its class {class_name} does not tell it")
        built = build(config, model_type=model_type, class_name=class_name)
        for path in asked:
            _refuse_unknown(built.settings, path)
        tensors, buffers, ties, class_name = built.tensors, built.buffers, built.ties, built.class_name
        way = {"class": class_name, "by": f"the blueprint of {model_type}"}
        metadata["closed_form"] = lambda ledger: closed_form(ledger, config, built.model_type, built.class_name)
        architecture = configs.from_config(config, built=built)
    except NotCovered as uncovered:
        from weighbridge.formats import meta

        found = meta.build(config, why=uncovered)
        tensors, buffers, ties, class_name = found.tensors, found.buffers, found.ties, found.class_name
        way = {
            "class": class_name,
            "by": f"transformers {found.transformers} on the meta device",
            "why": uncovered.what,
        }
        architecture = replace(configs.from_config(config), frozen=found.frozen)
    element, said = _dtype(config)
    notes += said
    stated = config.get("model_type")
    if isinstance(stated, str) and model_type not in (None, stated):
        notes.append(
            f"nobody knows the model_type {stated}: counted as {model_type}, whose class {class_name} it names"
        )
    named = _stated_class(config)
    if named is not None and named != class_name and class_name == _today(model_type, named):
        notes.append(f"config.json names {named}: counted as {class_name}")
    if not named:
        notes.append(f"config.json names no class: counted as {class_name}, the usual one")
    if architecture.quantization:
        notes.append(
            f"config.json announces {architecture.quantization}: parameters are exact, bytes are those of the weights"
            f" in {element}, before quantization"
        )
    rows = _rows(tensors, buffers, element)
    return Ledger(
        source=Source(location=location, files=[]),
        format="config",
        rows=rows,
        architecture=replace(architecture, classes=architecture.classes or (class_name,)),
        metadata=metadata | {"built": way},
        aliases=ties,
        signature=naming.signature(base=name, version=version, architecture=architecture, metadata={}, config=config),
        notes=notes,
        stated=Stated(kinds=dict.fromkeys(buffers, "buffer"), complete=True),
    )


def _refuse_unknown(settings: Settings, path: str) -> None:
    """A field that nobody knows is a slip: what was meant would go uncounted."""
    *owners, last = path.split(".")
    for owner in owners:
        if owner not in _ANYWHERE and not settings.knows(owner):
            last = owner
            break
        inner = settings.read(owner) if settings.has(owner) else None
        if not isinstance(inner, Settings):
            return  # a plain object, whose keys no class declares
        settings = inner
    if last not in _ANYWHERE and not settings.knows(last):
        import difflib

        fields = settings.fields()
        near = list(dict.fromkeys([f for f in fields if last in f][:2] + difflib.get_close_matches(last, fields, n=2)))
        fix = f"did you mean {' or '.join(near)}?" if near else "see the config class of transformers for its fields"
        raise Refused(f"--set {path}: the config of {settings.model_type} has no such field", fix=fix)


def _stated_class(config: Mapping[str, object]) -> str | None:
    stated = config.get("architectures")
    if stated is None or stated == []:
        return None
    if isinstance(stated, str):
        return stated
    if not isinstance(stated, list) or not isinstance(stated[0], str):
        raise Malformed(f"config.json: architectures is {str(stated)[:60]}", fix="it should be a list of one name")
    return stated[0]


def _asked(config: Mapping[str, object]) -> tuple[str | None, str | None]:
    """(model type, class) that the config asks for. Where the type is unknown or not stated, the class decides, unless
    the config brings code of its own: that may call its classes as it likes.
    """
    class_name = _stated_class(config)
    stated = config.get("model_type")
    if stated is not None and not isinstance(stated, str):
        raise Malformed(f"config.json: model_type is {str(stated)[:60]}", fix="it should be a name, such as llama")
    # A type that transformers knows and no blueprint does is itself, whatever its classes are called.
    unknown = stated is None or (family_of(stated) is None and class_of(stated) is None)
    if class_name is not None and unknown:
        by_class = type_of_class(class_name)
        if by_class is not None and "auto_map" not in config:
            return by_class, class_name
    return stated, _today(stated, class_name)


def _today(model_type: str | None, class_name: str | None) -> str | None:
    """What a class is called today: TensorFlow's and Flax's had the same parameters, and the first Llamas were spelled
    otherwise.
    """
    family = family_of(model_type) if model_type is not None else None
    if model_type is None or family is None or class_name is None or family.class_part(model_type, class_name)[1]:
        return class_name
    bare = re.sub("^(?:TF|Flax)(?=[A-Z])", "", class_name)
    if family.class_part(model_type, bare)[1]:
        return bare
    return next((one for one in family.classes(model_type) if one.lower() == bare.lower()), class_name)


def _dtype(config: Mapping[str, object]) -> tuple[DType, list[str]]:
    inner = [part for part in (config.get("text_config"), config.get("thinker_config")) if isinstance(part, dict)]
    for view in (config, *inner):
        for field in ("dtype", "torch_dtype"):
            stated = view.get(field)
            if stated is None or stated == "auto":
                continue
            known = _DTYPES.get(str(stated).removeprefix("torch."))
            if known is None:
                raise Malformed(
                    f"config.json: {field} is {str(stated)[:40]!r}", fix="it should be one of torch's float types"
                )
            return DTYPES[known], []
    return DTYPES["F32"], ["config.json states no dtype: bytes are those of F32, in which transformers builds it"]


def _rows(
    tensors: Mapping[str, tuple[int, ...]],
    buffers: Mapping[str, tuple[tuple[int, ...], str | None]],
    element: DType,
) -> Rows:
    names: list[str] = []
    kinds: list[Kind] = []
    for name, shape in tensors.items():
        names.append(name)
        kinds.append(_kind(name, element, shape))
    for name, (shape, stated) in buffers.items():
        names.append(name)
        kinds.append(_kind(name, DTYPES[stated or _BUFFER_DTYPE], shape))
    # Nothing lies anywhere: offsets only keep the order.
    return Rows(names=names, kinds=kinds, files=[0] * len(names), offsets=list(range(len(names))))


def _kind(name: str, element: DType, shape: tuple[int, ...]) -> Kind:
    if prod(shape) > _LARGEST:
        raise Malformed(
            f"config.json makes {name} {' x '.join(map(str, shape))} elements large", fix="look at its sizes"
        )
    return kind_of(element, shape)


_SETTING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def with_settings(config: Mapping[str, object], settings: Mapping[str, object]) -> dict[str, object]:
    """The config with fields set, `text_config.hidden_size` reaching into a part.

    Raises:
        Refused: a name that is none, or a path through something that is no object.
    """
    changed = dict(config)
    for name, value in settings.items():
        if not _SETTING.fullmatch(name):
            raise Refused(f"--set {name[:60]}: not the name of a field", fix="as in --set num_hidden_layers=40")
        *path, last = name.split(".")
        place = changed
        for step in path:
            inner = place.get(step)
            if inner is not None and not isinstance(inner, dict):
                raise Refused(f"--set {name}: {step} is no object")
            if inner is None and place is changed:
                _refuse_hiding(config, step, name)
            place[step] = place = dict(inner or {})
        place[last] = value
    return changed


def _refuse_hiding(config: Mapping[str, object], part: str, path: str) -> None:
    """Older configs state the sizes of a part at the top. Their class reads them there only while the part is absent:
    one field of it would put defaults in place of all others.
    """
    own = class_of(str(config.get("model_type")))
    spec = own.parts.get(part) if own else None
    inner = class_of(spec.type) if spec else None
    if own is None or inner is None:
        return
    flat = [name for name in config if name in inner.defaults and name not in own.defaults]
    if flat:
        last = path.rpartition(".")[2]
        raise Refused(
            f"--set {path}: this config states the fields of its {part} at the top, such as {flat[0]}",
            fix=f"--set {last}=VALUE changes it there",
        )


def states(config: Mapping[str, object], path: str) -> bool:
    """Whether a config itself has the field, in a part of it where the path says so."""
    inner: object = config
    for step in path.split("."):
        if not isinstance(inner, Mapping) or step not in inner:
            return False
        inner = inner[step]
    return True


def of_arch(model_type: str) -> dict[str, object]:
    """The config of a model type with nothing stated: its class's defaults.

    Raises:
        Unknown: no such type, with the nearest.
    """
    import difflib

    from weighbridge.formats.blueprints import known_types

    known = sorted({*known_types(), *types()})
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=3)
        fix = f"did you mean {' or '.join(near)}?" if near else "name a model_type of transformers, such as llama"
        raise Unknown(f"no architecture is called {model_type!r}", fix=fix)
    return {"model_type": model_type}

"""Models as Python objects: modules, state dicts, pytrees, estimators, configs.

An object is recognized by the libraries that its owner has already imported: none is imported here.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weighbridge.formats import config as configs
from weighbridge.formats.header import Header
from weighbridge.ledger import Architecture, Ledger, Signature, Source
from weighbridge.ledger.errors import Refused, Unknown, WeighError

_DEEPEST = 64
_DOT = re.compile(r"\.")


def ledger_of(thing: Any) -> Ledger:
    """The ledger of a live object.

    Raises:
        Refused: an object of a kind that is not known.
        Unknown: one whose parameters cannot be told.
    """
    found = _config(thing)
    if found is not None:
        from weighbridge.formats import configured

        return configured.ledger_of(found, location=_title(thing), name=str(found["model_type"]))
    kind, header = _header(thing)
    if not header.rows and kind != "estimator":  # scalers and encoders may learn nothing
        raise Unknown(f"this {_title(thing)} holds no arrays", fix="give it once it has been built or fitted")
    architecture, notes = _architecture(thing, header)
    return Ledger(
        source=Source(location=_title(thing), files=[]),
        format=kind,
        rows=header.rows,
        architecture=architecture,
        metadata=header.metadata,
        aliases=header.aliases,
        signature=Signature(base_model=_name(thing)),
        notes=[*header.notes, *notes],
        stated=header.stated,
    )


def _header(thing: Any) -> tuple[str, Header]:
    # First: on the torch backend a Keras layer is a torch module too, whose moving statistics are nn.Parameters.
    if _is(thing, "keras", "Layer"):
        from weighbridge.formats import keras_model

        return "keras model", keras_model.header_of(thing)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(thing, torch.nn.Module):
        from weighbridge.formats import torch_module

        return "torch module", torch_module.header_of(thing)
    if _is(thing, "torch.export", "ExportedProgram"):
        from weighbridge.formats import torch_module

        return "exported program", torch_module.header_of_program(thing)
    if (hasattr(thing, "get_params") and hasattr(thing, "fit")) or _is_boosted(thing):
        from weighbridge.formats import estimator

        return "estimator", estimator.header_of(thing)
    from weighbridge.formats import pytree

    if torch is not None and isinstance(thing, (Mapping, list, tuple)):
        from weighbridge.formats import torch_module, torch_tree

        nested = torch_tree.header_of(thing)
        if nested is not None:
            return "training state", nested
        if isinstance(thing, Mapping) and any(isinstance(value, torch.Tensor) for value in thing.values()):
            return "state dict", torch_module.header_of_state(thing)
    header = pytree.header_of(thing)
    if header is None:
        fix = "give a module, a state dict, a pytree of arrays, a Keras model, a fitted estimator, or a path"
        if _is(thing, "flax.linen", "Module"):
            fix = "a Linen module holds no arrays: give what its init returned"
        elif _is(thing, "diffusers", "DiffusionPipeline"):
            fix = "give its models one by one, or the folder that save_pretrained writes"
        raise Refused(f"an object of class {_title(thing)} is no model that is known", fix=fix)
    return "pytree", header


def _is(thing: object, package: str, name: str) -> bool:
    """Whether an object is of a class of a package, if that is loaded. Its submodules may be all that was imported."""
    module = sys.modules.get(package)
    found = getattr(module, name, None) if module is not None else None
    return isinstance(found, type) and isinstance(thing, found)


def _is_boosted(thing: object) -> bool:
    return _is(thing, "xgboost", "Booster") or _is(thing, "lightgbm", "Booster")


def _config(thing: Any) -> Mapping[str, object] | None:
    """The config that an object is, as a mapping: a transformers config, or what config.json holds."""
    if isinstance(thing, Mapping):
        return _plain(thing) if isinstance(thing.get("model_type"), str) and not _holds_arrays(thing) else None
    if (
        hasattr(thing, "to_dict")
        and isinstance(getattr(thing, "model_type", None), str)
        and not hasattr(thing, "parameters")
    ):
        return _plain(thing.to_dict())
    return None


def _holds_arrays(thing: Any, depth: int = 0) -> bool:
    """Whether there is an array in it: then it is no config, whatever else is in it."""
    if isinstance(thing, Mapping):
        thing = list(thing.values())
    if isinstance(thing, (list, tuple)):
        return depth < _DEEPEST and any(_holds_arrays(value, depth + 1) for value in thing)
    return hasattr(thing, "shape") or hasattr(thing, "parameters")


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As it would be in config.json."""
    import json

    return json.loads(json.dumps(config, default=str))


def _architecture(thing: Any, header: Header) -> tuple[Architecture, list[str]]:
    """(what the config of a module says of it, notes). The module's own tensors are counted in any case."""
    config = getattr(thing, "config", None)
    if not isinstance(getattr(config, "model_type", None), str) or not hasattr(config, "to_dict"):
        return Architecture(), []
    try:
        stated = _plain(config.to_dict())
        stated["architectures"] = stated.get("architectures") or [type(thing).__name__]
        found = configs.described(stated)
    except WeighError as error:
        return Architecture(), [f"its config says nothing of its layers: {error.what}"]
    except Exception as error:  # of a class of its owner's own
        return Architecture(), [f"its config cannot be read: {type(error).__name__}"]
    # What is trained, the module itself says; and layers may have been taken out of it.
    modules = {row.name[: at.start()] for row in header.rows for at in _DOT.finditer(row.name)}
    # Where one is wrapped, all have other names.
    mixers = tuple(mixer for mixer in found.mixers if mixer.module in modules) or found.mixers
    return replace(found, frozen=(), mixers=mixers), []


def _title(thing: object) -> str:
    return type(thing).__name__


def _name(thing: Any) -> str:
    config = getattr(thing, "config", None)
    stated = getattr(config, "_name_or_path", "") or getattr(config, "model_type", "")
    return stated.lower() if isinstance(stated, str) and stated else _title(thing).lower()

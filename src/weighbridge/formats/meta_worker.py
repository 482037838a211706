"""The process in which transformers builds a config on the meta device: a config on stdin, an object on stdout."""

import json
import os
import sys
from typing import Any

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}
_NAMES |= {"bool": "BOOL", "uint8": "U8", "int8": "I8", "complex64": "C64", "int16": "I16"}


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """What is built, or why nothing is."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    version = transformers.__version__
    stated = config.get("architectures") or []
    model_type = config.get("model_type")
    model_class = getattr(transformers, stated[0], None) if stated else None
    if stated and not _is_model(model_class):
        return {"unknown": f"transformers {version} has no class {stated[0]}" + _remote(config)}
    # A config that brings code of its own may call its classes as it likes: then the class alone decides nothing.
    if model_type not in CONFIG_MAPPING and (model_class is None or "auto_map" in config):
        return {"unknown": f"transformers {version} does not know the model type {model_type!r}" + _remote(config)}
    # The mapping loads when indexed: its `get` finds nothing.
    config_class: Any = CONFIG_MAPPING[model_type] if model_type in CONFIG_MAPPING else None  # noqa: SIM401
    if config_class is None and model_class is not None:
        config_class = model_class.config_class
    if model_class is not None and not issubclass(config_class, model_class.config_class):
        return {"malformed": f"architectures is {stated[0]}, which model_type {model_type} does not build"}
    try:
        made = config_class.from_dict(config)
        model_class = model_class or _usual(config_class)
        if model_class is None:
            return {"unknown": f"transformers {version} has no model class for {model_type!r}"}
        with torch.device("meta"):
            model = model_class._from_config(made)
    except Exception as error:
        return {"malformed": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    kept = model.state_dict(keep_vars=True)
    tensors = dict(model.named_parameters())
    names = {id(tensor): name for name, tensor in tensors.items()}
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in kept}
    if not all(str(b.dtype).removeprefix("torch.") in _NAMES for b in buffers.values()):
        return {"unknown": "a buffer of a dtype that is not known here"}
    return {
        "class": type(model).__name__,
        "transformers": version,
        "tensors": [(name, list(tensor.shape)) for name, tensor in tensors.items()],
        "buffers": [(n, list(b.shape), _NAMES[str(b.dtype).removeprefix("torch.")]) for n, b in buffers.items()],
        "frozen": [name for name, tensor in tensors.items() if not tensor.requires_grad],
        "ties": {name: names[id(tensor)] for name, tensor in kept.items() if names.get(id(tensor), name) != name},
    }


def _is_model(thing: Any) -> bool:
    import transformers

    return isinstance(thing, type) and issubclass(thing, transformers.PreTrainedModel)


def _remote(config: dict[str, Any]) -> str:
    return "; config.json points to code of its own, which is never run" if "auto_map" in config else ""


def _usual(config_class: Any) -> Any:
    """The class that most checkpoints of the type hold: with its language-model head, where it has one."""
    from transformers.models.auto import modeling_auto as auto

    for mapping in (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
        auto.MODEL_FOR_MASKED_LM_MAPPING,
        auto.MODEL_MAPPING,
    ):
        if config_class in mapping:
            found = mapping[config_class]
            return found[0] if isinstance(found, (tuple, list)) else found
    return None


def main() -> None:
    """Answers the config on stdin."""
    # stdout is for the answer alone: whatever the libraries print goes to stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        found = answer(json.load(sys.stdin))
    except ImportError as error:
        found = {
            "unknown": f"transformers cannot be imported ({error})",
            "fix": "mend the installation of torch and transformers",
        }
    json.dump(found, out)
    out.flush()


if __name__ == "__main__":
    main()

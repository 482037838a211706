"""PEFT adapters: a few trained tensors, and the name of the model they belong to.

Source: PEFT 0.21 `save_pretrained`: `adapter_config.json` beside `adapter_model.safetensors` or `.bin`; tensors are
called `base_model.model.<module of the base>.lora_A.weight`, those of `modules_to_save` after the module itself.
"""

from collections.abc import Mapping

from weighbridge.ledger.errors import Malformed

CONFIG = "adapter_config.json"


def base_of(config: Mapping[str, object]) -> str | None:
    """The base model an adapter names: a hub id or a path; None when it names none.

    Raises:
        Malformed: the name is no text.
    """
    name = config.get("base_model_name_or_path")
    if name is not None and not isinstance(name, str):
        raise Malformed(f"{CONFIG}: base_model_name_or_path is {name!r}", fix="it should be a hub id or a path")
    return name or None


def hyperparameters(config: Mapping[str, object]) -> dict[str, object]:
    """What a person chose for this adapter: method, rank, alpha, targets and whatever else differs from nothing."""
    return {key: value for key, value in sorted(config.items()) if value not in (None, {}, [], False, "")}

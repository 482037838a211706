"""PEFT adapters: a few trained tensors, and the name of the model they belong to.

Source: PEFT 0.21 `save_pretrained`: `adapter_config.json` beside `adapter_model.safetensors` or `.bin`; tensors are
called `base_model.model.<module of the base>.lora_A.weight`, those of `modules_to_save` after the module itself.
"""

import re
from collections.abc import Iterable, Mapping

from weighbridge.ledger import Row
from weighbridge.ledger.errors import Malformed
from weighbridge.ledger.families import pattern_of
from weighbridge.ledger.roles import role_of

CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_CHANGED = re.compile(r"base_model\.model\.(.+?)\.lora_")
# What PEFT takes for embedding layers: peft.utils.constants.EMBEDDING_LAYER_NAMES, and other models' names for them.
_SAVED_UNTRAINED = frozenset({"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out"})


def base_of(config: Mapping[str, object]) -> str | None:
    """The base model an adapter names: a hub id or a path; None when it names none.

    Raises:
        Malformed: the name is no text.

    """
    name = config.get("base_model_name_or_path")
    if name is not None and not isinstance(name, str):
        raise Malformed(f"{CONFIG}: base_model_name_or_path is {name!r}", fix="it should be a hub id or a path")
    return name or None


def copies(rows: Iterable[Row], config: Mapping[str, object]) -> dict[str, str]:
    """{stored name: name in the base} of tensors that an adapter stores although it did not train them.

    PEFT saves embeddings and heads beside an adapter that targets them, or whose vocabulary was resized: as
    `X.base_layer`, in older versions under the module's own name. All else in the file is the adapter's own.
    """
    saved = config.get("modules_to_save")
    trained = {part for name in saved for part in name.split(".")[-1:]} if isinstance(saved, list) else set()
    with_biases = config.get("bias", "none") != "none"
    found = {}
    for row in rows:
        if not row.name.startswith(_PREFIX) or not row.name.endswith((".weight", ".bias")):
            continue
        original = row.name.removeprefix(_PREFIX)
        parts = original.split(".")
        if role_of(pattern_of(original), row.shape) == "adapter" or (with_biases and parts[-1] == "bias"):
            continue
        if "base_layer" in parts:
            found[row.name] = original.replace(".base_layer.", ".")
        elif parts[-2] in _SAVED_UNTRAINED and trained.isdisjoint(parts):
            found[row.name] = original
    return found


def fits(rows: Iterable[Row], base: Iterable[str]) -> bool:
    """Whether any module that a LoRA adapter changes is one of the base, whose tensors have these names. A base may be
    stored under the name of its inner model, so that ends of names count. True where the adapter has no LoRA.
    """
    changed = {found[1] for row in rows if (found := _CHANGED.match(row.name))}
    if not changed:
        return True
    modules = {name.rpartition(".")[0] for name in base}
    return any(_ends_in(module, modules) for module in changed)


def _ends_in(module: str, modules: set[str]) -> bool:
    """Whether the module, or it without some of its first words, is one of `modules`."""
    while module:
        if module in modules:
            return True
        _, _, module = module.partition(".")
        if "." not in module:
            return False
    return False


def hyperparameters(config: Mapping[str, object]) -> dict[str, object]:
    """What a person chose for this adapter: method, rank, alpha, targets and whatever else is set."""
    return {key: value for key, value in sorted(config.items()) if value not in (None, {}, [], False, "")}

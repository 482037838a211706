"""`--compare` says of a checkpoint on disk what transformers says when it loads it, whole or damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from test_compare import SMALL, compared

Tensors = dict[str, torch.Tensor]

_MOE = {**SMALL, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
# Families beyond those of tiny.MODELS: other prefixes, other ways to store experts and projections.
_MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4},
    ),
    "electra": ("ElectraForPreTraining", "ElectraConfig", {**SMALL, "embedding_size": 16}),
    "albert": ("AlbertForMaskedLM", "AlbertConfig", {**SMALL, "embedding_size": 16}),
    "deberta-v2": ("DebertaV2ForMaskedLM", "DebertaV2Config", SMALL),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "vocab_size": 60,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
        },
    ),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", {**SMALL, "num_experts": 4}),
    "qwen2-moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", {**_MOE, "num_experts": 4}),
    "granitemoe": ("GraniteMoeForCausalLM", "GraniteMoeConfig", {**SMALL, "num_local_experts": 4}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**SMALL, "use_swiglu_ffn": True, "image_size": 28}),
    "beit": ("BeitForImageClassification", "BeitConfig", {**SMALL, "image_size": 32}),
}
_MORE["dinov2"][2].pop("vocab_size")


def built(name: str) -> tf.PreTrainedModel:
    """A small model of that family."""
    if name in tiny.MODELS:
        return tiny.build(name)
    class_name, config_name, fields = _MORE[name]
    torch.manual_seed(0)
    return getattr(tf, class_name)(getattr(tf, config_name)(**fields))


def _largest(tensors: Tensors, dims: int = 1) -> str:
    return max(
        (name for name in tensors if tensors[name].dim() >= dims), key=lambda name: (tensors[name].numel(), name)
    )


def _lost(tensors: Tensors) -> Tensors:
    name = _largest(tensors)
    return {other: tensor for other, tensor in tensors.items() if other != name}


def _added(tensors: Tensors) -> Tensors:
    return tensors | {"stray.weight": torch.zeros(3)}


def _turned(tensors: Tensors) -> Tensors:
    oblong = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 2 and len(set(tensor.shape)) == 2}
    name = max(oblong)
    return tensors | {name: tensors[name].T.contiguous()}


def _longer(tensors: Tensors) -> Tensors:
    name = _largest(tensors)
    return tensors | {name: torch.cat([tensors[name], tensors[name][:1]])}


def _swapped(tensors: Tensors) -> Tensors:
    first = _largest(tensors)
    second = min(name for name in tensors if tensors[name].shape != tensors[first].shape)
    return tensors | {first: tensors[second], second: tensors[first]}


def _under(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


DAMAGES: dict[str, Callable[[Tensors], Tensors]] = {
    "whole": dict,
    "lost": _lost,
    "added": _added,
    "turned": _turned,
    "longer": _longer,
    "swapped": _swapped,
    "module.": _under("module."),
    "model.": _under("model."),
}


def _faults(kind: type[tf.PreTrainedModel], path: Path) -> set[str]:
    """What transformers finds fault with when it loads the files."""
    try:
        _, said = kind.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True)
    except RuntimeError as error:
        assert "automatic conversion" in str(error)  # pieces that do not go together
        return {str(error)}
    lacking = {one for one in said["missing_keys"] if not one.endswith("num_batches_tracked")}
    return lacking | set(said["unexpected_keys"]) | {str(one) for one in said["mismatched_keys"]}


@pytest.mark.parametrize("name", [*tiny.MODELS, *_MORE])
def test_the_verdict_on_a_file_is_that_of_from_pretrained(name: str, tmp_path: Path) -> None:
    model = built(name)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for what, damaged in DAMAGES.items():
        kept = {one: tensor.contiguous() for one, tensor in damaged(tensors).items()}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        faults = _faults(type(model), tmp_path)
        found = compared(tmp_path)
        assert found["complete"] == (not faults), (what, sorted(faults)[:5], found)

"""What transformers' `from_pretrained` would say of a checkpoint, on the meta device: no weight is needed.

The names and shapes of a checkpoint go through the very functions that load it. What they report is what
`from_pretrained(..., output_loading_info=True)` returns: missing, unexpected and mismatched keys, and conversions that
failed.
"""

import os
import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

# Threads cost more than they bring where nothing is read; and transformers compiles a pattern for every name.
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
vars(re)["_MAXCACHE"] = 1 << 16

Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What transformers reports. Names are those of its class, but for unexpected ones that it does not rename."""

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: frozenset[str]
    failed: frozenset[str]

    @property
    def complete(self) -> bool:
        """Whether it loads without a word."""
        return not (self.missing or self.unexpected or self.mismatched or self.failed)


def loaded(model: Any, shapes: Shapes) -> Loaded:
    """The report on loading tensors of these names and shapes into a model on the meta device."""
    tensors = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, (dtype, shape) in shapes.items()
    }
    how = LoadStateDictConfig(device_map={"": "meta"}, weight_mapping=get_model_conversion_mapping(model))
    info, _ = convert_and_load_state_dict_in_model(
        model=model, state_dict=tensors, load_config=how, disk_offload_index=None
    )
    # What was not learned and is computed anew is no fault of a checkpoint.
    computed = {name for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    ties = dict(model.all_tied_weights_keys)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model.all_tied_weights_keys = ties  # it forgets those that a checkpoint has twice
    model._adjust_missing_and_unexpected_keys(info)
    return Loaded(
        missing=frozenset(info.missing_keys - computed),
        unexpected=frozenset(info.unexpected_keys),
        mismatched=frozenset(name for name, _, _ in info.mismatched_keys),
        failed=frozenset(info.conversion_errors),
    )

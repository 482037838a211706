"""Every model class that transformers can build, against Weighbridge's judgment of its tensors.

    python benchmarks/families.py [--json FILE]

Builds each model type's default configuration on the meta device, as base model and with its language-model heads, and
judges the names, shapes and dtypes alone. Compared with torch: parameters, buffers that a checkpoint keeps, and the
share of parameters whose role is `other` (goal: below 0.5% in every class). Exit code 1 when a class differs.
"""

import argparse
import json
import logging
import sys
import warnings
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from weighbridge.formats.config import from_config
from weighbridge.ledger import Ledger, Row, Source, dtype

HEADS = {
    "base": modeling_auto.MODEL_MAPPING,
    "causal lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "masked lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
    "seq2seq lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "image-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
}
NAMES = {torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}


def ledger_of(model: Any, config: Any) -> tuple[Ledger, int, int]:
    """(ledger of what a checkpoint of the model would hold, torch's parameters, torch's kept buffers)."""
    kept = model.state_dict().keys()
    stored = [(name, tensor) for name, tensor in model.named_parameters()]
    buffers = [(name, tensor) for name, tensor in model.named_buffers() if name in kept]
    rows = []
    for at, (name, tensor) in enumerate(stored + buffers):
        element = dtype(NAMES.get(tensor.dtype, "F32"))
        shape = tuple(tensor.shape)
        rows.append(Row(name, element, shape, 0, at, element.nbytes(prod(shape))))
    stated = json.loads(json.dumps(config.to_dict(), default=str)) | {"architectures": [type(model).__name__]}
    ledger = Ledger(
        source=Source(location="meta", files=[]), format="meta", rows=rows, architecture=from_config(stated)
    )
    return ledger, sum(t.numel() for _, t in stored), sum(t.numel() for _, t in buffers)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, help="also write the figures here")
    options = arguments.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    weighed, differing, not_built = 0, [], 0
    worst = (0.0, "")
    for model_type in sorted(CONFIG_MAPPING):
        try:
            config = CONFIG_MAPPING[model_type]()
        except Exception:
            not_built += 1
            continue
        for head, mapping in HEADS.items():
            try:
                found = mapping[type(config)]
                with torch.device("meta"):
                    model = (found[0] if isinstance(found, tuple | list) else found)._from_config(config)
            except Exception:
                not_built += head == "base"
                continue
            ledger, parameters, buffers = ledger_of(model, config)
            weighed += 1
            other = ledger.by_role().get("other", 0) / max(parameters, 1)
            worst = max(worst, (other, f"{model_type}, {head}"))
            if (ledger.total, ledger.buffers) != (parameters, buffers) or other >= 0.005:
                differing.append((model_type, head, ledger.total - parameters, ledger.buffers - buffers, other))
                print(
                    f"{model_type}, {head}: parameters {ledger.total - parameters:+,}, buffers off by "
                    f"{ledger.buffers - buffers:+,}, other {other:.2%}"
                )
    figures = {"transformers": transformers.__version__, "weighed": weighed, "differing": len(differing)}
    figures |= {"types_without_base_model": not_built, "worst_other": worst}
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())

"""`weigh show --compare` on what transformers would save of every model type: no false alarm, and no damage missed.

    python benchmarks/compare.py [TYPE ...] [--json FILE]

Each type's usual class is built on the meta device from its default config, and its tensors go under the names that
transformers stores them by. That has to be found complete. Then one tensor is taken away, one gets another name, one
another shape: each has to be found.
"""

import argparse
import json
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.core_model_loading import revert_weight_conversion

sys.path.insert(0, str(Path(__file__).parent))

from blueprints import class_called

from weighbridge.formats import configured
from weighbridge.formats.blueprints import library
from weighbridge.formats.compare import Comparison, compare
from weighbridge.formats.dtype_names import dtype_named
from weighbridge.formats.salvage import types_in
from weighbridge.ledger import Ledger, Rows, Source, kind_of

Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, shape)


def saved(model_type: str, class_name: str) -> Shapes:
    """What transformers would write into the files of such a model."""
    config = CONFIG_MAPPING[model_type]()
    with torch.device("meta"):
        model = class_called(class_name, model_type)._from_config(config)
    copies = set(model.all_tied_weights_keys)
    stored = revert_weight_conversion(model, dict(model.state_dict()))
    return {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in stored.items()
        if name not in copies
    }


def against(expected: Ledger, shapes: Shapes, types: Iterable[str]) -> Comparison:
    """The comparison of a config with tensors of these names and shapes."""
    kinds = []
    for said, shape in shapes.values():
        dtype = dtype_named(said)
        assert dtype is not None, said
        kinds.append(kind_of(dtype, shape))
    rows = Rows(names=list(shapes), kinds=kinds, files=[0] * len(kinds), offsets=list(range(len(kinds))))
    source = Source(location="saved", files=[])
    stored = Ledger(source=source, format="safetensors", rows=rows, architecture=expected.architecture)
    return compare(expected, stored, [], types=types)


def damages(shapes: Shapes, draw: random.Random) -> dict[str, Shapes]:
    """One tensor lost, renamed, or of another shape: any parameter of some size."""
    name = draw.choice([name for name, (_, shape) in shapes.items() if prod(shape) > 1 and "position_ids" not in name])
    dtype, shape = shapes[name]
    head, _, leaf = name.rpartition(".")
    without = {other: value for other, value in shapes.items() if other != name}
    return {
        f"lost {name}": without,
        f"renamed {name}": without | {f"{head}_misnamed.{leaf}" if head else f"misnamed_{leaf}": (dtype, shape)},
        f"reshaped {name}": shapes | {name: (dtype, (shape[0] + 1, *shape[1:]))},
    }


def weigh_type(model_type: str, say: Callable[[str], object]) -> dict[str, int]:
    """What became of one type."""
    row = {"complete": 0, "false_alarms": 0, "found": 0, "missed": 0, "skipped": 0}
    family = library.family_of(model_type)
    assert family is not None
    class_name, _ = family.class_part(model_type, None)
    config = {"model_type": model_type, "architectures": [class_name]}
    try:
        shapes = saved(model_type, class_name)
        expected = configured.ledger_of(config, location=model_type, name=model_type)
    except Exception as error:
        say(f"{model_type}: skipped, {type(error).__name__}: {str(error)[:80]}")
        row["skipped"] = 1
        return row
    types = types_in(config)
    found = against(expected, shapes, types)
    row["complete" if found.complete else "false_alarms"] = 1
    if not found.complete:
        say(f"{model_type}: false alarm, missing {list(found.missing)[:3]}, unexpected {list(found.unexpected)[:3]}")
    for what, damaged in damages(shapes, random.Random(model_type)).items():
        missed = against(expected, damaged, types).complete
        row["missed" if missed else "found"] += 1
        if missed:
            say(f"{model_type}: missed, {what}")
    return row


def main() -> int:
    """Prints what differs; exit 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = {name: weigh_type(name, print) for name in options.types or library.types() if name in CONFIG_MAPPING}
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    print(f"{len(rows)} types: {total}; transformers {transformers.__version__}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 1 if total["false_alarms"] or total["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""`weigh show --compare` against transformers itself, on what it would save of every model type: told to be whole and
damaged in many ways.

    python benchmarks/compare.py [TYPE ...] [--json FILE]

Each type's usual class is built on the meta device from its default config, and its tensors go under the names that
transformers stores them by. Then they are damaged: lost, added, misnamed, of other shapes, under other prefixes, expert
by expert. Each time the verdict has to be that of `from_pretrained` (`loading.py`), and where no tensor is made of
several the names have to be the same.
"""

import argparse
import json
import logging
import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.core_model_loading import revert_weight_conversion

sys.path.insert(0, str(Path(__file__).parent))

from blueprints import class_called
from loading import Loaded, Shapes, loaded

from weighbridge.formats import configured
from weighbridge.formats.blueprints import library
from weighbridge.formats.compare import Comparison, compare
from weighbridge.formats.dtype_names import dtype_named
from weighbridge.formats.salvage import types_in
from weighbridge.ledger import Ledger, Rows, Source, kind_of

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def config_of(model_type: str, class_name: str) -> dict[str, Any]:
    """A type's default config, with few experts: a thousand are damaged like sixteen, and take minutes to load."""
    default = CONFIG_MAPPING[model_type]()
    text = getattr(default, "text_config", None)
    config: dict[str, Any] = {"model_type": model_type, "architectures": [class_name], **_few_experts(default)}
    if text is not None and _few_experts(text):
        config["text_config"] = {"model_type": text.model_type, **_few_experts(text)}
    return config


def _few_experts(config: Any) -> dict[str, int]:
    return {name: 16 for name in _EXPERTS if isinstance(count := getattr(config, name, None), int) and count > 16}


def built(config: dict[str, Any]) -> Any:
    """The model of a config, on the meta device."""
    model_type, (class_name,) = config["model_type"], config["architectures"]
    with torch.device("meta"):
        return class_called(class_name, model_type)._from_config(CONFIG_MAPPING[model_type].from_dict(config))


def saved(model: Any) -> Shapes:
    """What transformers would write into the files of a model."""
    once = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    stored = revert_weight_conversion(model, once)
    return {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in stored.items()}


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


def damages(shapes: Shapes, prefix: str, draw: random.Random) -> Iterator[tuple[str, str, Shapes]]:
    """(kind, which tensor, what is left) of each damage that these tensors can take."""
    learned = [name for name, (_, shape) in shapes.items() if prod(shape) > 1 and "position_ids" not in name]
    name = draw.choice(learned)
    dtype, shape = shapes[name]
    yield from _of_one(shapes, name)
    yield "added", name, shapes | {f"{name}_of_nobody": (dtype, shape)}
    oblong = [one for one in learned if len(shapes[one][1]) >= 2 and shapes[one][1] != shapes[one][1][::-1]]
    if oblong:
        name = draw.choice(oblong)
        dtype, shape = shapes[name]
        yield "transposed", name, shapes | {name: (dtype, shape[::-1])}
    other = next((one for one in draw.sample(learned, len(learned)) if shapes[one][1] != shape), None)
    if other is not None:
        yield "swapped", f"{name} and {other}", shapes | {name: shapes[other], other: shapes[name]}
    names = list(shapes)
    start = draw.randrange(len(names))
    lost = set(names[start : start + max(1, len(names) // 4)])
    yield "lost a shard", f"from {names[start]}", {one: what for one, what in shapes.items() if one not in lost}
    most = max(shapes[one][1][0] for one in learned)
    grown = {
        one: (what, tuple(size + 8 if size == most else size for size in sizes)) if one in learned else (what, sizes)
        for one, (what, sizes) in shapes.items()
    }
    yield "vocabulary", str(most), grown
    yield from _layers(shapes, learned)
    yield from _experts(shapes, draw)
    wrapper = draw.choice(("module.", "_orig_mod.", "base_model.model.", "model.model."))
    yield "prefix", wrapper, {wrapper + one: what for one, what in shapes.items()}
    if prefix:
        yield "prefix of the base", prefix, {f"{prefix}.{one}": what for one, what in shapes.items()}
    if prefix and any(one.startswith(f"{prefix}.") for one in names):
        yield "prefix lost", prefix, {one.removeprefix(f"{prefix}."): what for one, what in shapes.items()}


def _of_one(shapes: Shapes, name: str) -> Iterator[tuple[str, str, Shapes]]:
    dtype, shape = shapes[name]
    head, _, leaf = name.rpartition(".")
    without = {other: value for other, value in shapes.items() if other != name}
    yield "lost", name, without
    yield "renamed", name, without | {f"{head}_misnamed.{leaf}" if head else f"misnamed_{leaf}": (dtype, shape)}
    yield "reshaped", name, shapes | {name: (dtype, (shape[0] + 1, *shape[1:]))}


def _layers(shapes: Shapes, learned: list[str]) -> Iterator[tuple[str, str, Shapes]]:
    """One layer too many, of the longest stack."""
    stacks = Counter(name[: match.start()] for name in learned if (match := _LAYER.search(name)))
    if not stacks:
        return
    stack = stacks.most_common(1)[0][0]
    numbers = {int(match[0]) for name in learned if (match := _LAYER.search(name)) and name[: match.start()] == stack}
    last = f"{stack}{max(numbers)}."
    more = {
        f"{stack}{max(numbers) + 1}.{name[len(last) :]}": what for name, what in shapes.items() if name.startswith(last)
    }
    yield "layer too many", stack, shapes | more


def _experts(shapes: Shapes, draw: random.Random) -> Iterator[tuple[str, str, Shapes]]:
    """Experts that are stored one by one: one is lost, or too many, or a piece of one is of another shape."""
    pieces = [name for name in shapes if _EXPERT.search(name)]
    if not pieces:
        return
    name = draw.choice(pieces)
    dtype, shape = shapes[name]
    number = int(_EXPERT.findall(name)[0])
    head = name[: _EXPERT.search(name).start()]  # pyrefly: ignore[missing-attribute]
    mine = f"{head}{number}."
    yield "lost an expert", mine, {one: what for one, what in shapes.items() if not one.startswith(mine)}
    yield "lost a piece of an expert", name, {one: what for one, what in shapes.items() if one != name}
    yield "reshaped an expert", name, shapes | {name: (dtype, (shape[0] + 1, *shape[1:]))}
    yield "transposed an expert", name, shapes | {name: (dtype, shape[::-1])}
    every = [one for one in pieces if _EXPERT.sub("#", one) == _EXPERT.sub("#", name)]
    yield "reshaped every expert", name, shapes | dict.fromkeys(every, (dtype, (shape[0] + 1, *shape[1:])))
    yield "transposed every expert", name, shapes | dict.fromkeys(every, (dtype, shape[::-1]))
    count = 1 + max(int(_EXPERT.findall(one)[0]) for one in pieces if one.startswith(head))
    more = {f"{head}{count}.{one[len(mine) :]}": what for one, what in shapes.items() if one.startswith(mine)}
    yield "an expert too many", mine, shapes | more
    gap = {one: what for one, what in shapes.items() if not one.startswith(mine)}
    yield (
        "lost one and reshaped another",
        mine,
        {
            one: (what, (*sizes[:-1], sizes[-1] + 1)) if one in every else (what, sizes)
            for one, (what, sizes) in gap.items()
        },
    )


def verdict(found: Comparison, truth: Loaded, expected: Ledger) -> str:
    """What of a comparison is not as transformers has it; nothing where all is."""
    if found.complete != truth.complete:
        return "missed" if found.complete else "false_alarms"
    if found.complete:
        return "complete"
    names = {tensor.name for tensor in expected.tensors}
    plain = not truth.failed and found.wrong_shape.keys() <= names and found.missing.keys() <= names
    plain = plain and not found.missing_experts and not found.extra_experts and not found.prefixes
    # transformers counts a copy as missing when nothing it could be tied to is there.
    if plain and (
        truth.missing - expected.ties.keys() != found.missing.keys() or truth.mismatched != found.wrong_shape.keys()
    ):
        return "misnamed"
    return "found"


def weigh_type(model_type: str, say: Callable[[str], object]) -> dict[str, int]:
    """What became of one type."""
    row = {"complete": 0, "found": 0, "false_alarms": 0, "missed": 0, "misnamed": 0, "skipped": 0}
    family = library.family_of(model_type)
    assert family is not None
    class_name, _ = family.class_part(model_type, None)
    try:
        config = config_of(model_type, class_name)
        model = built(config)
        shapes = saved(model)
        expected = configured.ledger_of(config, location=model_type, name=model_type)
    except Exception as error:
        say(f"{model_type}: skipped, {type(error).__name__}: {str(error)[:80]}")
        row["skipped"] = 1
        return row
    types = types_in(config)
    cases = [("whole", model_type, shapes), *damages(shapes, model.base_model_prefix, random.Random(model_type))]
    for kind, which, case in cases:
        truth, found = loaded(model, case), against(expected, case, types)
        said = verdict(found, truth, expected)
        if kind.startswith("prefix") and len(truth.missing) > len(expected) // 2 and len(found.missing) > 9:
            said = "misnamed"  # it takes one line, not one for each tensor
        row[said] += 1
        if said not in ("complete", "found"):
            say(f"{model_type}: {said}: {kind} {which}: {_brief(found, truth)}")
    return row


def _brief(found: Comparison, truth: Loaded) -> str:
    ours = {
        "missing": found.missing,
        "unexpected": found.unexpected,
        "shape": found.wrong_shape,
        "experts": found.missing_experts,
    }
    theirs = {
        "missing": truth.missing,
        "unexpected": truth.unexpected,
        "shape": truth.mismatched,
        "failed": truth.failed,
    }
    sides = [{key: (len(names), min(names)) for key, names in side.items() if names} for side in (ours, theirs)]
    return f"{sides[0]}, transformers {sides[1]}"


def main() -> int:
    """Prints what differs; exit 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    rows = {name: weigh_type(name, print) for name in options.types or library.types() if name in CONFIG_MAPPING}
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    print(f"{len(rows)} types: {total}; transformers {transformers.__version__}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 1 if total["false_alarms"] or total["missed"] or total["misnamed"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Odd configs against transformers: fields dropped, null, of the wrong kind, negative, absurd, contradictory.

    python benchmarks/odd_configs.py [TYPE ...] [--cases N] [--seed N] [--json FILE]

For each model type, `--cases` configs are drawn in which one field or two are odd, of the config or of a part of it.
transformers builds each on the meta device, in a process of limited memory and time. What may come of it: equal names
and shapes; a refusal by both; a refusal by the blueprint alone, which should be rare. A count that differs, or a count
where transformers refuses, is a fault; so is a refusal that names no odd field. Exit code 1 when there are any.
"""

import argparse
import copy
import inspect
import json
import logging
import os
import random
import re
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blueprints as bench
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from weighbridge.formats import config as configs
from weighbridge.formats import configured
from weighbridge.formats.blueprints import NotCovered, build, library
from weighbridge.ledger.errors import WeighError

_MEMORY = 12 << 30  # bytes of address space
LEFT_OUT = json.loads((Path(configured.__file__).parent / "data/configs.json").read_bytes())["left_out"]
_SECONDS = 30  # a case
_ODD = (None, True, False, 0, -1, 1, 3, 1.5, 10**12, "odd", [], [1, 2], {})


class OutOfTime(Exception):
    """A case took longer than any may."""


def values_for(value: Any, draw: random.Random) -> list[Any]:
    """What to put in place of a value."""
    found = list(_ODD)
    if isinstance(value, int) and not isinstance(value, bool):
        found += [float(value), str(value), value + 1, value * 2, -value, [value]] * 2
    if isinstance(value, str):
        found += [value + "s", value.upper(), ""]
    if isinstance(value, list) and value:
        found += [value[:-1], [*value, value[-1]], [None, *value[1:]], ["odd", *value[1:]], [-1, *value[1:]], value[0]]
    if isinstance(value, bool):
        found += [int(value), str(value).lower(), not value]
    draw.shuffle(found)
    return [one for one in found if type(one) is not type(value) or one != value]


class OddDrawer(bench.Drawer):
    """Draws configs with one odd field, or two."""

    def cases(self, count: int) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """(config, paths of the odd fields)."""
        for _ in range(count):
            config = self.config(0)
            odd = [self.twist(self.config_class, config, "") for _ in range(1 if self.random.random() < 0.7 else 2)]
            yield config, [path for path in odd if path]

    def twist(self, config_class: Any, config: dict[str, Any], where: str) -> str:
        """Makes one field odd, and gives its path."""
        parts = [name for name in (config_class.sub_configs_defaults or {}) if isinstance(config.get(name), dict)]
        if parts and self.random.random() < 0.6:
            name = self.random.choice(parts)
            spec = config_class.sub_configs_defaults[name]
            return self.twist(self.part_class(spec), config[name], f"{where}{name}.")
        # No count hangs on those that the table leaves out.
        fields = {n: v for n, v in bench.fields_of(config_class).items() if not re.fullmatch(LEFT_OUT, n)}
        names = [*fields, *(name for name in config_class.attribute_map if name.startswith(("num_", "hidden_")))]
        if self.random.random() < 0.1:
            names = ["num_labels", "id2label", "tie_word_embeddings"]
        if not names:
            return ""
        name = self.random.choice(names)
        if name in config and self.random.random() < 0.1:
            del config[name]
        else:
            value = config.get(name, fields.get(config_class.attribute_map.get(name, name)))
            config[name] = self.random.choice(values_for(value, self.random))
        # An error may call it by the name that its class prefers.
        return f"{where}{name}|{config_class.attribute_map.get(name, name)}"


def timed_out(*_: object) -> None:
    raise OutOfTime


def one_case(
    config: dict[str, Any], odd: list[str], model_type: str, class_name: str, *, both: bool = True
) -> tuple[str, str]:
    """(what came of it, the words). Unless `both`, transformers is not asked about what is refused here: an absurd
    config may cost it all the memory there is.
    """
    began = time.monotonic()
    refusal, built = "", None
    try:
        built = build(copy.deepcopy(config), model_type=model_type, class_name=class_name)
        configs.from_config(config, built=built)
    except WeighError as error:
        built = None
        refusal = f"{'' if isinstance(error, NotCovered) else 'bad: '}{error}"
    except OutOfTime:
        return "fault", f"ours took more than {_SECONDS} seconds"
    except Exception as error:
        return "fault", f"ours raised {type(error).__name__}: {error}"
    if time.monotonic() - began > _SECONDS / 3:
        return "fault", f"ours took {time.monotonic() - began:.0f} seconds"
    failed, truth = "", {}
    try:
        if built is not None or both:
            _, truth = bench.reference(config, model_type, class_name)
    except ImportError:  # a model that needs a package that is not here
        return "not run", ""
    except (Exception, OutOfTime) as error:
        failed = f"{type(error).__name__} {' '.join(str(error).split())[:200]}"
    if built is None:
        names = [name for path in odd for name in path.rpartition(".")[2].split("|")]
        named = any(name in refusal for name in names)
        return ("both refuse" if failed else "refused") + ("" if named else ", unnamed"), refusal
    if failed:
        return "fault", f"counted, where transformers fails: {failed}"
    said = bench.difference(built, truth)
    return ("fault", said) if said else ("equal", "")


def needs_no_more(model_class: Any) -> bool:
    """Whether a class is built from its config alone: parts of larger models may need more."""
    needed = [p for p in inspect.signature(model_class.__init__).parameters.values() if p.default is p.empty]
    return sum(p.kind == p.POSITIONAL_OR_KEYWORD for p in needed) <= 2


def run_cases(model_type: str, count: int, seed: int, start: int, out: int) -> None:
    """In a process of its own: a line for each case, before and after it."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGALRM, timed_out)
    family = library.family_of(model_type)
    assert family is not None
    usual = family.class_part(model_type, None)[0]
    there = [
        name
        for name in bench.classes_in_transformers(model_type)
        if family.class_part(model_type, name)[1] is not None and needs_no_more(bench.class_called(name, model_type))
    ]
    drawer = OddDrawer(model_type, seed)
    with os.fdopen(out, "w") as lines:
        for at, (config, odd) in enumerate(drawer.cases(count)):
            class_name = drawer.random.choice(there) if there and at % 4 == 3 else usual
            if at < start:
                continue
            print(json.dumps([at, "began", class_name, config, odd]), file=lines, flush=True)
            signal.alarm(_SECONDS)
            try:
                found = one_case(config, odd, model_type, class_name)
            except OutOfTime:
                found = ("both refuse", "out of time")
            signal.alarm(0)
            print(json.dumps([at, *found]), file=lines, flush=True)


def weigh_type(model_type: str, count: int, seed: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    start = 0
    while start < count:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                run_cases(model_type, count, seed, start, writing)
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as lines:
            for line in lines:
                at, kind, *rest = json.loads(line)
                if kind == "began":
                    rows.append({"class": rest[0], "config": rest[1], "odd": rest[2], "outcome": "died", "said": ""})
                    start = at + 1
                else:
                    rows[-1] |= {"outcome": kind, "said": rest[0]}
        os.waitpid(child, 0)
        if not rows or rows[-1]["outcome"] != "died":
            break
    return rows


def told(row: dict[str, Any]) -> str:
    values = {}
    for path in row["odd"]:
        value: Any = row["config"]
        for step in path.partition("|")[0].split("."):
            value = value.get(step, "DROPPED") if isinstance(value, dict) else "GONE"
        values[path.partition("|")[0]] = value
    return f"{row['class']} {json.dumps(values)[:160]}: {row['said'][:330]}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("types", nargs="*", metavar="TYPE")
    arguments.add_argument("--cases", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    found = {}
    for model_type in options.types or library.types():
        if model_type not in CONFIG_MAPPING:
            continue
        rows = found[model_type] = weigh_type(model_type, options.cases, options.seed)
        total.update(row["outcome"] for row in rows)
        for row in rows:
            if row["outcome"] not in ("equal", "both refuse", "not run"):
                print(f"{model_type}: {row['outcome']}: {told(row)}", flush=True)
    print(", ".join(f"{count:,} {name}" for name, count in total.most_common()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if total["fault"] or total["died"] or total["both refuse, unnamed"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""What came of comparing a checkpoint with its config, and its report."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weighbridge.formats.prefixes import Prefix
from weighbridge.ledger.report import Block, Line, Report, Table, Title

_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")
_MOST_LISTED = 20

Shape = tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Comparison:
    """Names are the config's where both have one, and those of the files for pieces of what the config has whole."""

    matched: int = 0
    prefixes: list[Prefix] = field(default_factory=list)
    missing: dict[str, Shape] = field(default_factory=dict)
    unexpected: dict[str, Shape] = field(default_factory=dict)
    wrong_shape: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    otherwise: list[tuple[str, int, int, int]] = field(default_factory=list)  # (layer, expected, stored, elements)
    missing_experts: dict[str, list[int]] = field(default_factory=dict)
    extra_experts: dict[str, list[int]] = field(default_factory=dict)
    buffers_missing: list[str] = field(default_factory=list)
    buffers_unexpected: list[str] = field(default_factory=list)
    missing_untold: list[str] = field(default_factory=list)
    unexpected_untold: list[str] = field(default_factory=list)
    extras: Mapping[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the files hold just what the config describes."""
        return not (
            self.prefixes
            or self.missing
            or self.unexpected
            or self.wrong_shape
            or self.missing_experts
            or self.extra_experts
            or self.problems
        )

    @property
    def unexplained(self) -> int:
        """Tensors of either side that have none on the other."""
        named = (self.missing, self.unexpected, self.missing_experts, self.extra_experts)
        return sum(map(len, (*named, self.missing_untold, self.unexpected_untold)))


def report(found: Comparison, *, signature: str, source: str, built: object) -> Report:
    """The comparison as a report; its data is under `compare`."""
    data = {
        "complete": found.complete,
        "matched": found.matched,
        "prefixes": [{"files": one.stored, "config": one.config, "tensors": one.tensors} for one in found.prefixes],
        "missing": {name: list(shape) for name, shape in found.missing.items()},
        "unexpected": {name: list(shape) for name, shape in found.unexpected.items()},
        "wrong_shape": {name: {"config": list(a), "files": list(b)} for name, (a, b) in found.wrong_shape.items()},
        "missing_experts": found.missing_experts,
        "extra_experts": found.extra_experts,
        "stored_otherwise": [
            {"layer": layer, "config_tensors": a, "stored_tensors": b, "elements": n}
            for layer, a, b, n in found.otherwise
        ],
        "buffers": {"missing": found.buffers_missing, "unexpected": found.buffers_unexpected},
        "passed_over": {"missing": found.missing_untold, "unexpected": found.unexpected_untold},
        "extras": dict(found.extras),
        "files": found.problems,
    }
    verdict = (
        "the files hold what config.json describes"
        if found.complete
        else "the files do NOT hold what config.json describes"
    )
    blocks: list[Block] = [
        Title(text=verdict, detail=f"{source} · {signature}"),
        Table(columns=("", ">", ""), rows=_counts(found)),
    ]
    blocks += [Line(text=f"file: {problem}") for problem in found.problems[:_MOST_LISTED]]
    blocks += [Line(text=f"prefix: {prefix}") for prefix in found.prefixes]
    listed = _listed(found)
    if listed:
        shown = listed[:_MOST_LISTED]
        if len(listed) > len(shown):
            shown.append((f"and {len(listed) - len(shown):,} more", "(--json lists them)", ""))
        blocks.append(Table(columns=("tensor", "shape", "what"), rows=shown))
    return Report(
        verb="show",
        data={"signature": signature, "source": source, "built": built, "compare": data},
        blocks=blocks,
        summary=verdict,
        passed=found.complete,
    )


def _counts(found: Comparison) -> list[tuple[str, str, str]]:
    rows = [("matched", f"{found.matched:,}", "tensors with the config's name and shape")]
    if found.otherwise:
        a, b = sum(row[1] for row in found.otherwise), sum(row[2] for row in found.otherwise)
        rows.append(
            ("stored otherwise", f"{b:,}", f"for {a:,} of the config's: fused, split or stacked, shape for shape")
        )
    counts = (
        ("missing", len(found.missing), "in the config, not in the files"),
        ("missing experts", sum(map(len, found.missing_experts.values())), "of those stored one by one"),
        ("unexpected", len(found.unexpected), "in the files, not in the config"),
        ("extra experts", sum(map(len, found.extra_experts.values())), "more than the config has"),
        ("wrong shape", len(found.wrong_shape), "another shape than the config gives them"),
        ("wrong prefix", sum(one.tensors for one in found.prefixes), "compared as if their names began right"),
        ("faulty files", len(found.problems), ""),
        ("buffers missing", len(found.buffers_missing), "not learned: computed anew or left at their start"),
        ("buffers unexpected", len(found.buffers_unexpected), "not learned: today's class computes them"),
        ("missing, passed over", len(found.missing_untold), "transformers makes them anew"),
        ("unexpected, passed over", len(found.unexpected_untold), "transformers leaves them aside"),
    )
    rows += [(name, f"{count:,}", what) for name, count, what in counts if count]
    rows += [
        (name.replace("_", " "), f"{count:,}", "elements beside the model's own")
        for name, count in found.extras.items()
    ]
    return rows


def _listed(found: Comparison) -> list[tuple[str, str, str]]:
    """What differs, tensors alike but for the numbers in their names in one row."""
    listed = [(name, _shape(shape), "missing") for name, shape in found.missing.items()]
    listed += [(layer, _numbers(gaps), "experts missing") for layer, gaps in found.missing_experts.items()]
    listed += [(name, _shape(shape), "unexpected") for name, shape in found.unexpected.items()]
    listed += [(layer, _numbers(more), "experts too many") for layer, more in found.extra_experts.items()]
    listed += [(name, f"{_shape(a)}, stored {_shape(b)}", "wrong shape") for name, (a, b) in found.wrong_shape.items()]
    alike: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name, shape, what in listed:
        alike[_NUMBER.sub("#", name), shape, what].append(name)
    return [
        (names[0] if len(names) == 1 else f"{pattern} ({len(names):,})", shape, what)
        for (pattern, shape, what), names in alike.items()
    ]


def _numbers(numbers: Sequence[int]) -> str:
    rest = f" and {len(numbers) - 12:,} more" if len(numbers) > 12 else ""
    return ", ".join(map(str, numbers[:12])) + rest


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "scalar"

"""Tensors that a checkpoint stores in other pieces than its class has: experts one by one, projections apart or fused.

The pieces of a tensor are known from its shape and from what transformers does to them (`merging`), so that each of
them is checked: whether it is there, which number it has, which shape.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from weighbridge.formats.comparison import Comparison, Shape
from weighbridge.formats.merging import holds, made, pieces_of
from weighbridge.formats.renames import Merge, Piece, Renames

# GPT-2's Conv1D, of which bitsandbytes makes a linear layer: its weight is turned.
_CONV1D = (".c_attn", ".q_attn", ".c_fc", ".c_proj")
_LAYER = re.compile(r"^(.*?\.?\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor of the files, as the ledger understands it."""

    name: str
    weight: str  # its name without what says that it holds codes
    shape: Shape
    elements: int
    kind: str
    packed: bool


@dataclass(slots=True, kw_only=True)
class _Experts:
    """Of a layer: how many pieces an expert has; by number those that the files lack, or have beyond the config."""

    pieces: int = 0
    lost: defaultdict[int, dict[str, Shape]] = field(default_factory=lambda: defaultdict(dict))
    more: defaultdict[int, dict[str, Shape]] = field(default_factory=lambda: defaultdict(dict))


def is_one(one: Stored, shape: Shape, method: str | None) -> bool:
    """Whether a stored tensor is one of that shape, or codes for one."""
    if one.packed:
        module, _, leaf = one.name.rpartition(".")
        turned = module.endswith(_CONV1D) and (method or "").startswith("bitsandbytes") and one.shape == shape[::-1]
        return turned or holds(leaf, one.shape, one.elements, shape, method)
    return one.shape == shape and one.elements == prod(shape)


def put_together(
    left: dict[str, Shape], loose: Sequence[Stored], found: Comparison, renames: Renames, method: str | None
) -> list[Stored]:
    """Takes out of `left` what the loose tensors are pieces of. Those that are pieces of nothing come back."""
    goes = renames.merged([one.weight for one in loose], lambda name: name in left)
    groups: defaultdict[tuple[tuple[str, ...], Merge], list[Stored]] = defaultdict(list)
    for one in loose:
        piece = goes.get(one.weight)
        if piece is not None:
            groups[piece.targets, piece.merge].append(one)
    taken: set[str] = set()
    experts: defaultdict[str, _Experts] = defaultdict(_Experts)
    for (targets, merge), ours in groups.items():
        if not left.keys() >= set(targets):
            continue  # what it would be cut into lies there by itself
        wanted = {name: left.pop(name) for name in targets}
        # Where two stored tensors claim one place, the second is left over.
        placed: dict[_Place, _Placed] = {}
        for one in ours:
            piece = goes[one.weight]
            placed.setdefault((piece.source, piece.number), _Placed(stored=one, piece=piece))
        _judge(merge, wanted, placed, found, experts[_layer(targets[0])], method)
        taken.update(one.stored.name for one in placed.values())
    for layer, ones in experts.items():
        _tell(layer, ones, found)
    return [one for one in loose if one.name not in taken]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    stored: Stored
    piece: Piece


_Place = tuple[int, int | None]  # (which source, which number)


def _judge(
    merge: Merge,
    wanted: Mapping[str, Shape],
    ours: Mapping[_Place, _Placed],
    found: Comparison,
    experts: _Experts,
    method: str | None,
) -> None:
    """Whether pieces become what is wanted, and if not, which of them is to blame."""
    targets, sources = list(wanted.values()), range(len(merge.sources))
    expected = pieces_of(merge.operations, targets, len(merge.sources))
    shapes = {place: one.stored.shape for place, one in ours.items()}
    if expected is not None:
        experts.pieces += sum(count is not None for _, count in expected)
        shapes |= {
            place: expected[place[0]][0]
            for place, one in ours.items()
            if one.stored.packed and is_one(one.stored, expected[place[0]][0], method)
        }
    places = _expected_places(expected) if expected is not None else ours.keys()
    becomes = made(
        merge.operations,
        [[shapes[place] for place in sorted(ours, key=_order) if place[0] == source] for source in sources],
        targets,
    )
    # transformers numbers experts as they come: with one lost and one too many it would load others' in their place.
    if becomes == targets and ours.keys() == set(places):
        elements = sum(map(prod, targets))
        found.otherwise.append((_layer(next(iter(wanted))), len(wanted), len(ours), elements))
        return
    blamed = 0
    if expected is not None:
        blamed = _blame(expected, wanted, ours, shapes, found, experts)
    if not blamed:
        shown = becomes if len(becomes) == len(targets) else [()] * len(targets)
        found.wrong_shape |= {
            name: (shape, other) for (name, shape), other in zip(wanted.items(), shown, strict=True) if shape != other
        }


def _blame(
    expected: Sequence[tuple[Shape, int | None]],
    wanted: Mapping[str, Shape],
    ours: Mapping[_Place, _Placed],
    shapes: Mapping[_Place, Shape],
    found: Comparison,
    experts: _Experts,
) -> int:
    """Tells the pieces that are missing, too many, or of another shape, and how many those are."""
    places = _expected_places(expected)
    blamed = 0
    first = next(iter(ours.values()))
    for place in places:
        shape = expected[place[0]][0]
        if place in ours:
            if shapes[place] != shape:
                found.wrong_shape[ours[place].stored.name] = (shape, ours[place].stored.shape)
                blamed += 1
            continue
        blamed += 1
        # Named like the pieces that are there; where that cannot be done, by what they would have become.
        name = first.piece.beside(first.stored.name, *place)
        if name is None:
            found.missing |= wanted
        elif place[1] is None:
            found.missing[name] = shape
        else:
            experts.lost[place[1]][name] = shape
    for place in ours.keys() - set(places):
        one = ours[place].stored
        blamed += 1
        if place[1] is None:
            found.unexpected[one.name] = one.shape
        else:
            experts.more[place[1]][one.name] = one.shape
    return blamed


def _tell(layer: str, experts: _Experts, found: Comparison) -> None:
    """Experts by their numbers where all of one is missing or too many, else its pieces."""
    for numbered, whole, single in (
        (experts.lost, found.missing_experts, found.missing),
        (experts.more, found.extra_experts, found.unexpected),
    ):
        for number in sorted(numbered):
            if len(numbered[number]) == experts.pieces:
                whole.setdefault(layer, []).append(number)
            else:
                single |= numbered[number]


def _expected_places(expected: Sequence[tuple[Shape, int | None]]) -> list[_Place]:
    return [
        (source, number)
        for source, (_, count) in enumerate(expected)
        for number in ([None] if count is None else range(count))
    ]


def _order(place: _Place) -> tuple[int, int]:
    return place[0], -1 if place[1] is None else place[1]


def _layer(name: str) -> str:
    """The layer that a tensor lies in; where there are no layers, its module."""
    match = _LAYER.match(name)
    return match[1] if match else name.rpartition(".")[0]

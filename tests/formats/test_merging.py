"""What becomes of shapes is what transformers' own operations do to tensors of these shapes."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import core_model_loading as loading

from weighbridge.formats.merging import Operation, Shape, made, pieces_of

# Chains as the table has them: operations here, those of transformers, sources, targets, pieces a source.
CHAINS: dict[str, tuple[list[Operation], list[loading.ConversionOps], int, int, int]] = {
    "stack": ([("stack", (0,))], [loading.MergeModulelist(dim=0)], 1, 1, 4),
    "stack, concatenate": (
        [("stack", (0,)), ("concatenate", (1,))],
        [loading.MergeModulelist(dim=0), loading.Concatenate(dim=1)],
        2,
        1,
        4,
    ),
    "concatenate": ([("concatenate", (0,))], [loading.Concatenate(dim=0)], 3, 1, 1),
    "chunk": ([("chunk", (0,))], [loading.Chunk(dim=0)], 1, 3, 1),
    "transpose": ([("transpose", (0, 1))], [loading.Transpose(0, 1)], 1, 1, 1),
    "share out": (
        [("share out", (0, 1))],
        [loading.ErnieFuseAndSplitTextVisionExperts(stack_dim=0, concat_dim=1)],
        2,
        2,
        4,
    ),
}


def by_transformers(
    operations: Sequence[loading.ConversionOps], pieces: Sequence[Sequence[Shape]], targets: int
) -> list[Shape]:
    """The shapes that transformers makes, nothing where it cannot."""
    sources = [f"source{at}.*" for at in range(len(pieces))]
    names = [f"target{at}" for at in range(targets)]
    held = {name: [torch.empty(shape) for shape in shapes] for name, shapes in zip(sources, pieces, strict=True)}
    try:
        for one in operations:
            held = one.convert(held, source_patterns=sources, target_patterns=names, config=None)
    except (RuntimeError, IndexError):
        return []
    found = [held[name] for name in names if name in held]
    return [tuple((one[0] if isinstance(one, list) else one).shape) for one in found]


@pytest.mark.parametrize("chain", CHAINS)
@given(data=st.data())
def test_pieces_become_what_transformers_makes_of_them(chain: str, data: st.DataObject) -> None:
    ours, theirs, sources, targets, count = CHAINS[chain]
    sizes = st.sampled_from([2, 3, 6])
    alike = data.draw(st.tuples(sizes, sizes))
    # Mostly alike, sometimes one that does not fit.
    shape = st.one_of(st.just(alike), st.just(alike), st.just(alike), st.tuples(sizes, sizes))
    pieces = [data.draw(st.lists(shape, min_size=count, max_size=count)) for _ in range(sources)]
    assert made(ours, pieces, [(0, 0)] * targets) == by_transformers(theirs, pieces, targets)


@pytest.mark.parametrize("chain", CHAINS)
@given(sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_the_pieces_of_a_tensor_are_those_that_it_was_made_of(chain: str, sizes: Shape) -> None:
    ours, _, sources, _, count = CHAINS[chain]
    shape = (3 * sizes[0], sizes[1])  # what is cut in three has to be cut evenly
    pieces = [[shape] * count for _ in range(sources)]
    targets = made(ours, pieces, [(0, 0)] * CHAINS[chain][3])
    expected = pieces_of(ours, targets, sources)
    assert expected == [(shape, count if count > 1 else None)] * sources


def test_shapes_that_go_nowhere_become_nothing() -> None:
    assert made([("stack", (0,))], [[]], [(1, 2)]) == []
    assert made([("split", (0,))], [[(5, 2)]], [(2, 2), (2, 2)]) == []
    assert made([("split", (0,))], [[(5, 2)]], [(3, 2), (2, 2)]) == [(3, 2), (2, 2)]
    assert made([("transpose if needed", (1, 2))], [[(4, 2, 3)]], [(4, 3, 2)]) == [(4, 3, 2)]
    assert made([("transpose if needed", (1, 2))], [[(4, 3, 2)]], [(4, 3, 2)]) == [(4, 3, 2)]
    assert pieces_of([("concatenate", (0,))], [(5, 2)], 2) is None
    assert pieces_of([("stack", (0,))], [()], 1) is None

"""Flax's checkpoints and JAX's pytrees, against the arrays that were saved."""

from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx, serialization

import weighbridge
from weighbridge.formats.models import open_model
from weighbridge.ledger.errors import WeighError


class Net(nn.Module):
    """An embedding, a norm with statistics, a projection in half precision."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(300, 16)(tokens)
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(40, param_dtype=jnp.bfloat16)(x)


@pytest.fixture
def variables() -> Any:
    return Net().init(jax.random.key(0), jnp.zeros((1, 3), "int32"))


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_a_checkpoint_holds_what_was_saved(variables: Any, tmp_path: Path) -> None:
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(serialization.to_bytes(variables))
    report = weighbridge.show(path, tensors="*")
    listed = {row["name"]: tuple(row["shape"]) for row in report.data["tensor_list"]}
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    assert listed == {".".join(str(key.key) for key in keys): leaf.shape for keys, leaf in leaves}
    assert report.data["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    assert report.data["parameters"]["total"] == _count(variables["params"])
    assert report.data["buffers"]["total"] == _count(variables["batch_stats"])
    assert report.data["parameters"]["by_dtype"]["BF16"] == 16 * 40 + 40


def test_a_live_pytree_counts_the_same(variables: Any, tmp_path: Path) -> None:
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(serialization.to_bytes(variables))
    for tree in (variables, jax.eval_shape(lambda: variables)):
        live = weighbridge.show(tree).data
        saved = weighbridge.show(path).data
        assert live["parameters"]["total"] == saved["parameters"]["total"]
        assert live["buffers"]["total"] == saved["buffers"]["total"]


def test_the_values_are_where_the_header_says(variables: Any, tmp_path: Path) -> None:
    from safetensors.flax import save_file

    (tmp_path / "flax_model.msgpack").write_bytes(serialization.to_bytes(variables["params"]))
    flat = flax.traverse_util.flatten_dict(variables["params"], sep=".")
    save_file(flat, tmp_path / "model.safetensors")
    digests = {weighbridge.sign(tmp_path / n, full=True).digest for n in ("flax_model.msgpack", "model.safetensors")}
    assert len(digests) == 1


def test_broken_files_are_refused(variables: Any, tmp_path: Path) -> None:
    whole = serialization.to_bytes(variables)
    path = tmp_path / "cut.msgpack"
    for end in range(0, len(whole), 211):
        path.write_bytes(whole[:end])
        with pytest.raises(WeighError):
            weighbridge.show(path)
    for at in [*range(0, 200), *range(200, len(whole), 301)]:
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            weighbridge.show(path)
        except WeighError as refusal:
            assert "\n" not in str(refusal)


def test_what_is_no_param_of_nnx_is_state_in_the_module_and_in_its_state() -> None:
    class Own(nnx.BatchStat):
        pass

    class Small(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.dense = nnx.Linear(4, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.own = Own(jnp.ones(6))

    module = Small(nnx.Rngs(0))
    for thing in (module, nnx.state(module), nnx.split(module)[1]):
        said: Any = weighbridge.show(thing).data
        assert said["parameters"]["total"] == 4 * 8 + 8 + 16
        assert said["buffers"]["total"] == 16 + 6 + 2  # statistics, its own, and the random key with its count


def test_an_array_in_chunks_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1 << 10)
    path = tmp_path / "large.msgpack"
    tree = {"params": {"w": jnp.zeros((64, 65)), "small": jnp.ones(3)}, "batch_stats": {"m": jnp.ones((9, 99))}}
    path.write_bytes(serialization.to_bytes(tree))
    ledger = open_model(str(path))
    assert {row.name: row.shape for row in ledger.rows} == {
        "params.w": (64, 65),
        "params.small": (3,),
        "batch_stats.m": (9, 99),
    }
    assert (ledger.total, ledger.buffers, ledger.nbytes) == (64 * 65 + 3, 9 * 99, 4 * (64 * 65 + 3 + 9 * 99))
    whole = path.read_bytes()
    wrong = whole.replace(b"\xa10\x40\xa11\x41", b"\xa10\x41\xa11\x41")
    assert wrong != whole
    path.write_bytes(wrong)
    with pytest.raises(WeighError, match=r"chunks of params\.w do not make a shape"):
        open_model(str(path))

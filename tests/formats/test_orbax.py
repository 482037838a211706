"""Orbax checkpoints, written by Orbax itself, and databases that nobody should write."""

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import graphs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax.training.train_state import TrainState

from weighbridge.formats import ocdbt
from weighbridge.formats.local import LocalFile
from weighbridge.formats.models import open_model
from weighbridge.ledger import Ledger
from weighbridge.ledger.errors import Malformed, NotFound, Refused, WeighError

TREE: dict[str, Any] = {
    "params": {
        "dense": {"kernel": jnp.ones((3, 5), jnp.bfloat16), "bias": jnp.zeros(5)},
        "layers": [jnp.ones((2, 2)), jnp.ones(7, jnp.int8)],
    },
    "step": jnp.array(3),
    "epoch": 5,
    "rate": 0.1,
    "numpy": np.ones((4, 2)),
}
WAYS = {"ocdbt": (True, False), "zarr3": (True, True), "folders": (False, False), "zarr3_folders": (False, True)}


def shapes(ledger: Ledger) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {row.name: (row.dtype.name, row.shape) for row in ledger.rows}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("orbax")
    for name, (database, zarr3) in WAYS.items():
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=database, use_zarr3=zarr3)
        ocp.Checkpointer(handler).save(place / name, TREE)
    return place


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "ocdbt", tmp_path / "copy"))


@pytest.mark.parametrize("way", WAYS)
def test_every_layout_holds_the_arrays_that_were_saved(saved: Path, way: str) -> None:
    ledger = open_model(str(saved / way))
    assert shapes(ledger) == {
        "params.dense.kernel": ("BF16", (3, 5)),
        "params.dense.bias": ("F32", (5,)),
        "params.layers.0": ("F32", (2, 2)),
        "params.layers.1": ("I8", (7,)),
        "step": ("I32", ()),
        "epoch": ("I64", ()),
        "rate": ("F64", ()),
        "numpy": ("F64", (4, 2)),
    }
    assert (ledger.total, ledger.buffers, dict(ledger.extras)) == (32, 9, {"optimizer_state": 1})


def test_a_training_state_is_parameters_statistics_and_optimizer_state(tmp_path: Path) -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens: jax.Array) -> jax.Array:
            hidden = nn.BatchNorm(use_running_average=False)(nn.Dense(40)(nn.Embed(50, 16)(tokens)))
            return nn.Dense(3)(hidden)

    net = Net()
    made = net.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    state = TrainState.create(apply_fn=net.apply, params=made["params"], tx=optax.adamw(1e-3))
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "state", {"state": state, "batch_stats": made["batch_stats"]})
    ledger = open_model(str(tmp_path / "state"))

    def size(tree: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert ledger.total == size(made["params"])
    assert ledger.buffers == size(made["batch_stats"])
    assert ledger.extras["optimizer_state"] == size(state.opt_state) + 1  # and the step


@pytest.mark.parametrize("compression", [None, {"id": "zstd", "level": 1}])
@pytest.mark.parametrize(("node", "inline"), [(600, 0), (600, 1000), (5000, 40), (1 << 20, 100)])
def test_a_database_is_read_as_tensorstore_wrote_it(
    tmp_path: Path, node: int, inline: int, compression: dict[str, Any] | None
) -> None:
    config = {"max_decoded_node_bytes": node, "max_inline_value_bytes": inline, "compression": compression}
    store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{tmp_path}/", "config": config}).result()
    draw = random.Random(node + inline)
    written = {}
    for at in range(400):
        name = f"{draw.choice(['', 'params.', 'params.deep.er.'])}{draw.randrange(10**6)}/{draw.choice(['a', 'bb'])}"
        written[name] = draw.randbytes(draw.randrange(90))
        if at % 80 == 0:
            store.write(name, written[name]).result()  # a version of its own
    with ts.Transaction() as transaction:
        for name, value in written.items():
            store.with_transaction(transaction).write(name, value).result()
    found = dict(ocdbt.entries(lambda name: LocalFile(tmp_path / name), lambda key: key.endswith("/bb")))
    assert found == {name: value for name, value in written.items() if name.endswith("/bb")}
    assert list(found) == sorted(found)


def test_of_a_training_with_steps_one_is_named(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.Composite(model=ocp.args.StandardSave({"w": jnp.ones((3, 2))})))
    assert open_model(str(tmp_path / "run" / "2")).total == 6
    with pytest.raises(Refused, match=r"steps of a training: 1, 2; name one, as .*/run/2"):
        open_model(str(tmp_path / "run"))
    shutil.copytree(tmp_path / "run/2/model", tmp_path / "run/2/other")
    with pytest.raises(Refused, match="several checkpoints: model, other"):
        open_model(str(tmp_path / "run" / "2"))


def test_an_array_that_is_lost_is_named(saved: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(saved / "folders", tmp_path / "broken"))
    shutil.rmtree(broken / "params.dense.kernel")
    with pytest.raises(NotFound, match=r"lacks 1 arrays that its tree names, the first params\.dense\.kernel"):
        open_model(str(broken))


def _files(place: Path) -> Iterator[Path]:
    return (path for path in sorted(place.rglob("*")) if path.is_file() and path.stat().st_size)


def test_damage_and_loss_give_a_plain_error_or_a_sound_ledger(copy: Path) -> None:
    for path in [path for path in _files(copy) if path.name == "manifest.ocdbt" or path.parent.name == "d"]:
        graphs.survives(path, lambda: open_model(str(copy)), copies=40, seed=9)
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            try:
                assert open_model(str(copy)).total == 32  # chunks are not read
            except WeighError as error:
                assert "\n" not in str(error)
        path.write_bytes(whole)
    (copy / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(Malformed):
        open_model(str(copy))


def _node(body: bytes, magic: bytes) -> bytes:
    return magic + (4 + 8 + 2 + len(body) + 4).to_bytes(8, "little") + b"\0\0" + body + bytes(4)


def _path(text: bytes) -> bytes:
    return b"\x01" + bytes([len(text)]) + b"\0" + text


def test_a_database_that_points_out_of_its_folder_or_into_itself_is_refused(copy: Path) -> None:
    def manifest(path: bytes, height: int, length: int) -> bytes:
        config = bytes(16) + b"\0\x64\x80\x01\x04\0"
        root = b"\x01\x01" + bytes([height]) + b"\0\0" + bytes([length]) + b"\0\0\0" + bytes(8) + b"\0"
        return _node(config + _path(path) + root, b"\x0c\xdb\x3a\x2a")

    for outside in (b"../secret", b"/etc/passwd", b"d/../../x"):
        (copy / "manifest.ocdbt").write_bytes(manifest(outside, 0, 60))
        with pytest.raises(Malformed, match="points out of its folder"):
            open_model(str(copy))
    # A node whose one child is itself, of a height that its own parent does not believe.
    inner = b"\x01" + _path(b"loop") + b"\x01" + b"\x01\0" + b"k" + b"\0\0" + bytes([50]) + b"\x01\x01\x01"
    loop = _node(inner, b"\x0c\xdb\x20\xde")
    (copy / "loop").write_bytes(loop + bytes(50))
    (copy / "manifest.ocdbt").write_bytes(manifest(b"loop", 1, len(loop)))
    with pytest.raises(WeighError):
        open_model(str(copy))


def test_without_the_package_that_decompresses_the_extra_is_named(saved: Path) -> None:
    code = f"""
import sys
sys.modules["zstandard"] = None
from weighbridge.cli import main
sys.argv = ["weigh", {str(saved / "ocdbt")!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'weighbridge[orbax]'" in done.stderr
    assert open_model(str(saved / "folders")).total == 32

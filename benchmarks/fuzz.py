"""Mutated files thrown at every reader: each must be read, or refused with one line, in bounded time and memory.

    python benchmarks/fuzz.py [--seconds 60] [--seed 1] [--keep FOLDER] [--json FILE] [--only FORMAT...]

Seeds are files that torch, safetensors and gguf write. A mutation flips bits, plants interesting integers, cuts
or repeats ranges, mostly in the header. A sample fails when it raises anything but a WeighError, takes more than two
seconds, or lifts the process above 200 MB; failing samples are kept. Exit code 1 when any failed.
"""

import argparse
import collections
import json
import multiprocessing
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from weighbridge.formats import open_model, training_of
from weighbridge.ledger.errors import WeighError
from weighbridge.ledger.show import show

LIMIT_SECONDS, LIMIT_BYTES = 2.0, 200_000_000
INTERESTING = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**62, 2**63 - 1, 2**64 - 1]


class Slow(Exception):
    """A sample that took too long."""


def make_seeds(place: Path) -> dict[str, Path]:
    """{format: folder}, each folder a model whose first file is mutated. torch runs in a process of its own."""
    import subprocess

    code = """
import sys, json, torch
from pathlib import Path
import layouts, numpy as np, gguf
from safetensors.torch import save_file
place = Path(sys.argv[1])
state = {f"model.layers.{i}.self_attn.q_proj.weight": torch.ones(8, 8, dtype=torch.bfloat16) for i in range(6)}
state["model.embed_tokens.weight"] = torch.ones(32, 8)
state["lm_head.weight"] = state["model.embed_tokens.weight"]
for name in ("safetensors", "sharded", "config", "torch-zip", "torch-legacy", "checkpoint", "gguf", "peft"):
    (place / name).mkdir()
apart = {k: v.clone() for k, v in state.items()}
save_file(apart, place / "safetensors/model.safetensors", metadata={"format": "pt"})
layout = layouts.llama(layers=3, hidden=16, ffn=16, heads=2, kv_heads=1, vocab=32)
layouts.write_folder(place / "sharded", layout, config={"model_type": "llama"}, shards=3)
config = {"model_type": "deepseek_v3", "num_hidden_layers": 3, "n_routed_experts": 4, "num_experts_per_tok": 2,
          "num_nextn_predict_layers": 1, "quantization_config": {"quant_method": "fp8", "bits": 8}}
layouts.write_folder(place / "config", layout, config=config)
torch.save(state, place / "torch-zip/model.pt")
torch.save(state, place / "torch-legacy/model.pt", _use_new_zipfile_serialization=False)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(3, 4)).sum().backward(); optimizer.step()
whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
torch.save(whole, place / "checkpoint/last.ckpt")
writer = gguf.GGUFWriter(place / "gguf/model.gguf", "llama")
writer.add_block_count(1); writer.add_token_list([f"t{i}" for i in range(5000)]); writer.add_string("note", "x" * 50)
for i in range(4):
    writer.add_tensor(f"blk.0.{i}.weight", np.zeros((4, 18), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
lora = {f"base_model.model.model.layers.{i}.q_proj.lora_A.weight": torch.ones(2, 8) for i in range(3)}
save_file(lora, place / "peft/adapter_model.safetensors")
(place / "peft/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "bias": "none"}))
"""
    path = str(Path(__file__).parents[1] / "tests")
    import os

    subprocess.run([sys.executable, "-c", code, str(place)], check=True, env={**os.environ, "PYTHONPATH": path})
    # In a process of its own: what it imports would count as the readers' memory.
    worker = multiprocessing.get_context("spawn").Process(target=_made_elsewhere, args=(place,))
    worker.start()
    worker.join()
    return {folder.name: folder for folder in sorted(place.iterdir())}


TARGETS = {
    "safetensors": "model.safetensors",
    "sharded": "model.safetensors.index.json",
    "config": "config.json",
    "torch-zip": "model.pt",
    "torch-legacy": "model.pt",
    "checkpoint": "last.ckpt",
    "gguf": "model.gguf",
    "peft": "adapter_config.json",
    "onnx": "model.onnx",
    "tflite": "recurrent.tflite",
    "saved-model-graph": "saved_model.pb",
    "saved-model-index": "variables/variables.index",
    "coreml-program": "model.mlmodel",
    "coreml-weights": "weights/weight.bin",
    "config-alone": "config.json",
    "hdf5": "model.h5",
    "flax": "flax_model.msgpack",
    "npz": "model.npz",
    "skops": "model.skops",
    "xgboost": "model.ubj",
    "orbax-manifest": "manifest.ocdbt",
    "orbax-node": "d/*",
}


def _made_elsewhere(place: Path) -> None:
    """Seeds of formats whose libraries write them: some here, TensorFlow's and Core ML's as the tests have them."""
    import json
    import zipfile

    import h5py
    import numpy as np
    import skops.io
    import tensorstore
    import xgboost
    from flax import serialization
    from onnx import helper, numpy_helper
    from sklearn.tree import DecisionTreeRegressor

    for name in ("config-alone", "hdf5", "flax", "npz", "skops", "xgboost"):
        (place / name).mkdir()
    models = json.loads((Path(__file__).parents[1] / "tests/data/real_models.json").read_text())["models"]
    config = next(one["config"] for one in models if one["name"] == "deepseek-ai/DeepSeek-V3")
    (place / "config-alone/config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    values = np.arange(24.0, dtype="f4").reshape(4, 6)
    with h5py.File(place / "hdf5/model.h5", "w") as file:
        for name in ("dense", "dense_1", "batch_normalization"):
            group = file.create_group(f"layers/{name}/vars")
            group.attrs["name"] = name
            for at in range(4 if name == "batch_normalization" else 2):
                group.create_dataset(str(at), data=values[0] if at or name == "batch_normalization" else values)
    tree = {"params": {"dense": {"kernel": values, "bias": values[0]}}, "batch_stats": {"norm": {"mean": values[0]}}}
    (place / "flax/flax_model.msgpack").write_bytes(serialization.to_bytes(tree))
    np.savez_compressed(place / "npz/model.npz", kernel=values, bias=values[0])
    fitted = DecisionTreeRegressor().fit(values, values[:, 0])
    skops.io.dump(fitted, place / "skops/model.skops")
    xgboost.train({}, xgboost.DMatrix(values, values[:, 0]), 3).save_model(place / "xgboost/model.ubj")

    described = {"zarr_format": 2, "dtype": "<f4", "chunks": [4, 6]}
    for name in ("orbax-manifest", "orbax-node"):
        # Not compressed, or few changes would come through.
        store = {"driver": "ocdbt", "base": f"file://{place / name}/"}
        store["config"] = {"compression": None, "max_decoded_node_bytes": 400, "max_inline_value_bytes": 1000}
        with tensorstore.Transaction() as transaction:
            database = tensorstore.KvStore.open(store).result().with_transaction(transaction)
            for at in range(12):
                database.write(f"params.{at}/.zarray", json.dumps(described | {"shape": [at, 6]})).result()
    (place / "onnx").mkdir()
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    weights = [
        numpy_helper.from_array(np.ones(shape, "f4"), f"w{at}") for at, shape in enumerate(((8, 8), (8,), (8, 8)))
    ]
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w2"], ["z"])], "b", [], [helper.make_tensor_value_info("z", 1, None)]
    )
    nodes = [
        helper.make_node("linear", ["x", "w0", "w1"], ["h"], domain="own"),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(3), "c")),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    linear = helper.make_function(
        "own", "linear", ["a", "w", "b"], ["r"], [helper.make_node("Gemm", ["a", "w", "b"], ["r"])], opsets
    )
    x, y = helper.make_tensor_value_info("x", 1, [None, 8]), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, functions=[linear], opset_imports=opsets)
    (place / "onnx/model.onnx").write_bytes(model.SerializeToString())
    data = Path(__file__).parents[1] / "tests" / "data"
    with zipfile.ZipFile(data / "tensorflow.zip") as archive:
        archive.extract("recurrent.tflite", place / "tflite")
        for name in ("saved-model-graph", "saved-model-index"):
            archive.extractall(place / "unpacked")
            shutil.copytree(place / "unpacked/trained", place / name)
    with zipfile.ZipFile(data / "coreml.zip") as archive:
        archive.extractall(place / "unpacked")
        for name in ("coreml-program", "coreml-weights"):
            shutil.copytree(place / "unpacked/encoder-int4.mlpackage/Data/com.apple.CoreML", place / name)
    shutil.rmtree(place / "unpacked")


def mutated(raw: bytes, draw: random.Random) -> bytes:
    data = bytearray(raw)
    head = min(len(data), 4096)
    mutations: list[Callable[[], None]] = [
        lambda: data.__setitem__(draw.randrange(head), draw.randrange(256)),
        lambda: data.__setitem__(draw.randrange(len(data)), draw.randrange(256)),
        lambda: _plant(data, draw, head),
        lambda: data.__delitem__(slice(at := draw.randrange(head), at + draw.randrange(1, 32))),
        lambda: _repeat(data, draw, head),
        lambda: data.__delitem__(slice(draw.randrange(len(data)), None)),
        lambda: _digits(data, draw, head),
    ]
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        if not data:
            break
        head = min(len(data), 4096)
        draw.choice(mutations)()
    return bytes(data)


def _plant(data: bytearray, draw: random.Random, head: int) -> None:
    width = draw.choice("BHIQ")
    value = draw.choice(INTERESTING) & ((1 << 8 * struct.calcsize(width)) - 1)
    at = draw.randrange(head)
    data[at : at + struct.calcsize(width)] = struct.pack(f"<{width}", value)


def _repeat(data: bytearray, draw: random.Random, head: int) -> None:
    at = draw.randrange(head)
    data[at:at] = data[at : at + draw.randrange(1, 64)] * draw.choice((1, 2, 100))


def _digits(data: bytearray, draw: random.Random, head: int) -> None:
    """Another number where the text has one."""
    places = [i for i in range(head) if 48 <= data[i] < 58]
    if places:
        at = draw.choice(places)
        data[at : at + 1] = str(draw.choice([*INTERESTING, -1, 1e400, 0.5])).encode()


def weigh(folder: Path) -> str:
    """What becomes of a sample: "read" or the name of its refusal."""
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        ledger = open_model(str(folder), offline=True)
        str(show(ledger, training=training_of(str(folder))))
    except WeighError as error:
        return type(error).__name__ if "\n" not in str(error) else "several lines"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


def _too_slow(*_: object) -> None:
    raise Slow


def fuzz(
    name: str, folder: Path, seconds: float, seed: int, keep: Path
) -> tuple[collections.Counter[str], float, int, int]:
    """(outcomes, slowest in seconds, peak memory in bytes, failures) of one format."""
    signal.signal(signal.SIGALRM, _too_slow)
    # What no blueprint knows would go to transformers, in a process of its own that takes seconds.
    sys.modules["transformers"] = None  # type: ignore[assignment]
    draw = random.Random(f"{seed}-{name}")
    target = next(folder.glob(TARGETS[name]))
    raw = target.read_bytes()
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, bad, memory = 0.0, 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        target.write_bytes(mutated(raw, draw))
        start = time.perf_counter()
        try:
            outcome = weigh(folder)
        except (Exception, Slow) as error:
            outcome = f"FAILED {type(error).__name__}"
        slowest = max(slowest, time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        too_large = peak > LIMIT_BYTES and peak > memory
        memory = peak
        if outcome.startswith("FAILED") or outcome == "several lines" or too_large:
            bad += 1
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(target, keep / f"{name}-{bad}-{outcome.replace(' ', '-')}")
        outcomes[outcome] += 1
    target.write_bytes(raw)
    return outcomes, slowest, memory, bad


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=60, help="for each format")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failing samples go")
    arguments.add_argument("--only", nargs="+", help="formats to throw at; all when left out")
    arguments.add_argument("--json", type=Path, help="also write the figures here")
    options = arguments.parse_args()
    figures: dict[str, dict[str, object]] = {}
    failed = 0
    print("| format | samples | read | refused | failed | slowest ms | peak memory MB |\n|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, folder in make_seeds(Path(temporary)).items():
            if options.only and name not in options.only:
                continue
            # A process for each format, so that one's memory is not another's.
            with multiprocessing.get_context("fork").Pool(1) as pool:
                found = pool.apply(fuzz, (name, folder, options.seconds, options.seed, options.keep))
            outcomes, slowest, memory, bad = found
            count, read = sum(outcomes.values()), outcomes["read"]
            row = (
                f"{count:,}",
                f"{read:,}",
                f"{count - read - bad:,}",
                bad,
                f"{slowest * 1e3:.0f}",
                f"{memory / 1e6:.0f}",
            )
            print(f"| {name} | {' | '.join(map(str, row))} |", flush=True)
            figures[name] = {"outcomes": dict(outcomes), "slowest_s": slowest, "peak_bytes": memory}
            failed += bad
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

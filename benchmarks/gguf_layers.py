"""What llama.cpp allocates for each layer of a GGUF file, family by family: the truth for Weighbridge's GGUF mixers.

    pip install xllamacpp gguf
    python benchmarks/gguf_layers.py [FAMILY ...] [--record tests/data/gguf_layers.json]

For each family a small file is made whose tensors are those that llama.cpp asks for: it is loaded again and again, and
each time the tensor that llama.cpp misses is added, in the shape that it expects. What it then logs of its caches
(which layers, how many cells, how many MiB of keys, values and states) has to follow from the mixers that Weighbridge
reads off the same file. `--record` keeps files' headers and logs for the test suite. Exit code 1 when anything differs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any

from weighbridge.formats.config import from_gguf
from weighbridge.ledger import DTYPES, Mixer, Row

CONTEXT, LAYERS = 4096, 8
QUIET_SECONDS, TRIES = 40, 12
COMMON: dict[str, Any] = {
    "context_length": CONTEXT, "embedding_length": 512, "block_count": LAYERS, "feed_forward_length": 64,
    "vocab_size": 96, "tokenizer.ggml.model": "no_vocab", "attention.head_count": 8, "attention.head_count_kv": 2,
    "attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 64,
    "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5, "ssm.conv_kernel": 4,
    "ssm.inner_size": 1024, "ssm.state_size": 64, "ssm.time_step_rank": 16, "ssm.group_count": 4,
}  # fmt: skip
# Keys that some families ask for.
ASKED: dict[str, Any] = {
    "rope.dimension_sections": [16, 8, 8, 0], "logit_scale": 0.06, "attention.clamp_kqv": 8.0,
    "use_parallel_residual": True, "interleave_moe_layer_step": 2, "expert_weights_scale": 1.0,
    "shortconv.l_cache": 3, "embedding_length_per_layer_input": 32, "full_attention_interval": 4,
    "expert_gating_func": 2, "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 32,
    "expert_count": 4, "expert_used_count": 2, "leading_dense_block_count": 1, "expert_shared_count": 1,
    "wkv.head_size": 64, "time_mix_extra_dim": 32, "time_decay_extra_dim": 32, "rescale_every_n_layers": 0,
    "token_shift_count": 1,
}  # fmt: skip
EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
WINDOW = {"attention.sliding_window": 512}
LATENT = {
    "attention.head_count_kv": 1, "attention.key_length": 192, "attention.value_length": 128,
    "rope.dimension_count": 64,
    "attention.kv_lora_rank": 128, "attention.key_length_mla": 96, "attention.value_length_mla": 64,
    "attention.q_lora_rank": 96, **EXPERTS,
}  # fmt: skip


def _all(names: str, metadata: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names.split(), metadata)


SOME = {"attention.head_count_kv": [0, 0, 0, 2, 0, 0, 0, 2]}
FAMILIES: dict[str, dict[str, Any]] = {
    **_all("llama baichuan gpt2 gptneox mpt refact bloom stablelm qwen2 qwen3", {}),
    **_all("gemma starcoder2 command-r openelm internlm2 orion olmo chatglm glm4", {}),
    **_all("phi2 minicpm plamo xverse nemotron exaone granite smollm3 seed_oss", {}),
    **_all("modern-bert neo-bert eurobert gemma-embedding", WINDOW),
    **_all("gemma2 gemma3 cohere2 olmo2 exaone4 exaone-moe afmoe gpt-oss", WINDOW | EXPERTS),
    **_all("qwen2moe qwen3moe phimoe bailingmoe2 ernie4_5-moe hunyuan-moe", EXPERTS),
    "plamo3": WINDOW, "llama4": EXPERTS, "gemma3n": WINDOW, "smallthinker": WINDOW | EXPERTS,
    "deepseek2": LATENT, "mistral4": LATENT,
    "kimi-linear": LATENT | {"attention.head_count_kv": [0, 0, 0, 1, 0, 0, 0, 1], "kda.head_dim": 64},
    "qwen3next": EXPERTS, "qwen35": {}, "qwen35moe": EXPERTS,
    "mamba": {"ssm.group_count": 0}, "mamba2": {}, "falcon-h1": {}, "rwkv6qwen2": {"token_shift_count": 1},
    "jamba": SOME | {"ssm.group_count": 0}, "granitehybrid": SOME, "lfm2": SOME, "lfm2moe": SOME | EXPERTS,
    "nemotron_h": SOME | {"feed_forward_length": [0, 64, 0, 0, 64, 0, 0, 0]},
}  # fmt: skip

_SIZE = re.compile(
    r"(llama_\w+): size = +[\d.]+ MiB \( *(\d+) cells.*?[KR] \(\w+\): +([\d.]+) MiB, [VS] \(\w+\): +([\d.]+) MiB"
)
_HELD = re.compile(r"(?:llama_kv_cache|llama_memory_recurrent)[:,] layer +(\d+): dev =")


def write(path: str, family: str, metadata: dict[str, Any], tensors: dict[str, list[int]]) -> None:
    """A GGUF file of zeros."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, family)
    for name, value in metadata.items():
        key = name if name.startswith("tokenizer.") else f"{family}.{name}"
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape[::-1], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def grow(family: str, path: str) -> None:
    """In a process of its own: adds what llama.cpp misses until it has built its caches. Leaves header and log."""
    import xllamacpp

    metadata, tensors, known = COMMON | FAMILIES[family], {}, {}
    if Path(f"{path}.json").exists():  # an earlier try
        metadata, tensors = json.loads(Path(f"{path}.json").read_text()).values()
    while True:
        write(path, family, metadata, tensors)
        Path(f"{path}.json").write_text(json.dumps({"metadata": metadata, "tensors": tensors}))
        log = os.open(f"{path}.log", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        parameters = xllamacpp.CommonParams()
        parameters.model.path, parameters.n_ctx, parameters.n_parallel = path, CONTEXT, 1
        parameters.verbosity, parameters.warmup = 5, False
        try:
            xllamacpp.Server(parameters)
            built = True
        except RuntimeError:
            built = False
        said = written(Path(f"{path}.log"), until="n_seq_max" if built else "error loading model")
        if built:
            os._exit(0)
        missing = re.search(r"tensor '([^']+)' not found", said)
        shape = re.search(r"tensor '([^']+)' has wrong shape; expected ([\d, ]+), got", said)
        key = re.search(r"key not found in model: [\w.\-]+?\.(\S+)", said)
        if missing:
            tensors[missing[1]] = known.get(_pattern(missing[1]), [1])
        elif shape:
            tensors[shape[1]] = known[_pattern(shape[1])] = [int(n) for n in shape[2].replace(" ", "").split(",") if n]
        elif key and key[1] in ASKED and key[1] not in metadata:
            metadata[key[1]] = ASKED[key[1]]
        else:
            os._exit(1)


def written(log: Path, *, until: str) -> str:
    """What llama.cpp logs, which a thread of its own writes: once that word is in it and nothing more comes."""
    said, end = "", time.time() + QUIET_SECONDS
    while time.time() < end:
        before, said = said, log.read_text(errors="replace")
        if until in said and said == before:
            break
        time.sleep(0.05)
    return said


def _pattern(name: str) -> str:
    return re.sub(r"blk\.\d+\.", "blk.#.", name)


def caches(log: str) -> list[dict[str, Any]]:
    """What llama.cpp allocated, cache by cache: it first tries with nothing allocated, so that the last ones count."""
    found, layers = [], []
    for line in log.splitlines():
        held, size = _HELD.search(line), _SIZE.search(line)
        if held:
            layers.append(int(held[1]))
        elif size:
            state = "recurrent" in size[1]
            row = {"state": state, "layers": layers, "cells": int(size[2]), "mib": [float(size[3]), float(size[4])]}
            found.append(row)
            layers = []
    whole = len(found) // 2
    return found[whole:] if whole and found[:whole] == found[whole : 2 * whole] else found


def expected(mixers: tuple[Mixer, ...], record: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same caches as the mixers have them."""
    made = []
    own = {int(mixer.module.rpartition(".")[2]): [] for mixer in mixers}
    for mixer in mixers:
        own[int(mixer.module.rpartition(".")[2])].append(mixer)
    keys = [cache for cache in record if not cache["state"]]
    split = len(keys) > 1 or any(cache["cells"] < CONTEXT for cache in keys)
    for cache in record:
        layers, first, second = [], 0, 0
        windowed = cache is keys[-1] if split else False  # llama.cpp makes that of the windowed layers last
        for number, listed in own.items():
            for mixer in listed:
                if cache["state"] and mixer.kind in ("linear", "ssm"):
                    conv, state = mixer.conv or (0, 1), mixer.state or (0,)
                    first, second = first + conv[0] * (conv[1] - 1) * 4, second + prod(state) * 4
                elif not cache["state"] and mixer.kind == "latent":
                    first += ((mixer.kv_rank or 0) + (mixer.rope_dim or 0)) * cache["cells"] * 2
                elif not cache["state"] and mixer.kind in ("full", "sliding", "chunked") and mixer.kv_from is None:
                    if split and (mixer.kind != "full") != windowed:
                        continue
                    width = (mixer.kv_heads or 0) * cache["cells"] * 2
                    first += (mixer.head_dim or 0) * width
                    second += (mixer.value_dim or mixer.head_dim or 0) * width
                else:
                    continue
                layers.append(number)
        mib = [round(first / 2**20, 2), round(second / 2**20, 2)]
        made.append({"state": cache["state"], "layers": layers, "cells": cache["cells"], "mib": mib})
    return made


def watched(command: list[str], log: Path) -> None:
    """Runs it. llama.cpp may hang on such a small model once its caches are there: ended when it says nothing more."""
    process = subprocess.Popen(command, env={**os.environ, "GGML_NO_BACKTRACE": "1"}, stderr=subprocess.DEVNULL)
    started = time.time()
    while process.poll() is None:
        time.sleep(0.1)
        if time.time() - (log.stat().st_mtime if log.exists() else started) > QUIET_SECONDS:
            process.kill()


def rows_of(tensors: dict[str, list[int]]) -> list[Row]:
    """The tensors of a file, which lists the innermost size first."""
    return [Row(name, DTYPES["F32"], tuple(shape[::-1]), 0, 0, 4) for name, shape in tensors.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--grow", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.grow:
        grow(asked.families[0], asked.grow)
    records, differ = {}, 0
    for family in asked.families or FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            path = f"{place}/model.gguf"
            command = [sys.executable, __file__, family, "--grow", path]
            loaded, found = False, []
            for _ in range(TRIES):  # where it crashes once its caches are there, their log may be lost
                watched(command, Path(f"{path}.log"))
                said = Path(f"{path}.log").read_text(errors="replace")
                found = caches(said)
                loaded = "llama_context: n_seq_max" in said and (bool(found) or "graph_reserve" in said)
                if loaded:
                    break
            header = json.loads(Path(f"{path}.json").read_text())
        stated = {f"{family}.{name}": value for name, value in header["metadata"].items()}
        mixers = from_gguf({"general.architecture": family} | stated, rows_of(header["tensors"])).mixers
        made = expected(mixers, found)
        said = "equal" if made == found and loaded else f"llama.cpp {found}, mixers {made}"
        said = said if loaded else "not loaded"
        differ += said != "equal"
        print(f"{family}: {said}", flush=True)
        records[family] = {**header, "caches": found}
    if asked.record and not differ:
        before = json.loads(asked.record.read_text())["families"] if asked.families and asked.record.exists() else {}
        records = before | records
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in records.items())
        version = __import__("importlib.metadata").metadata.version("xllamacpp")
        about = f"Headers of small GGUF files and what llama.cpp allocated for them: xllamacpp {version} (MIT)"
        asked.record.write_text(f'{{"about": {json.dumps(about)},\n"families": {{\n{lines}\n}}}}\n')
    print(f"{len(records)} families, {differ} differ")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())

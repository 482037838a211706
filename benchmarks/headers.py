"""How much a whole `weigh show` costs, cold, beside its peers: CPU time and peak memory of whole processes.

    python benchmarks/headers.py [--runs 7] [--json FILE]

Builds the wheel, installs it alone into a temporary environment, makes header-only models (real layouts, sparse files)
and runs every command in turn, several rounds. Peers run in this environment: huggingface_hub and hf-mem against a
local server that speaks the hub's endpoints, safetensors' safe_open, gguf's reader, accelerate's meta-device estimate.
`pip install -r benchmarks/requirements.txt` for hf-mem. Figures are medians over rounds.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import hub_server  # noqa: E402
import layouts  # noqa: E402

DEEPSEEK = "deepseek-ai/DeepSeek-V3"

PEERS = {
    "safe_open": """
import json, sys
from pathlib import Path
from safetensors import safe_open
total = 0
for shard in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with safe_open(shard, "np") as file:
        for name in file.keys():
            size = 1
            for n in file.get_slice(name).get_shape():
                size *= n
            total += size
print(total)
""",
    "gguf": """
import sys
from gguf import GGUFReader
print(sum(int(t.n_elements) for t in GGUFReader(sys.argv[1]).tensors))
""",
    "huggingface_hub": """
import sys
from huggingface_hub import HfApi
metadata = HfApi(endpoint=sys.argv[1]).get_safetensors_metadata(sys.argv[2])
print(sum(metadata.parameter_count.values()))
""",
    # hf-mem knows one address for the hub: requests to it are sent to the local server instead.
    "hf-mem": """
import asyncio, sys
from urllib.parse import urlsplit
import httpx2
local = urlsplit(sys.argv[1])
send = httpx2.AsyncClient.send
async def redirected(self, request, **options):
    if request.url.host == "huggingface.co":
        request.url = request.url.copy_with(scheme=local.scheme, host=local.hostname, port=local.port)
        request.headers["host"] = local.netloc
    return await send(self, request, **options)
httpx2.AsyncClient.send = redirected
from hf_mem.cli import main
sys.argv = ["hf-mem", "--model-id", sys.argv[2], "--json-output"]
main()
""",
    "accelerate": """
import sys
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
with init_empty_weights():
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]))
print(sum(p.numel() for p in model.parameters()))
""",
}


@dataclass
class Result:
    """Medians over rounds: CPU seconds (user + system), wall seconds, peak resident bytes."""

    cpu: float
    wall: float
    memory: int


# A child starts as a copy of its parent, whose memory would count as its peak: this small process is the parent.
RUNNER = """
import json, os, sys, time
for line in sys.stdin:
    command, env = json.loads(line)
    start = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    pid = os.posix_spawn(command[0], command, env, file_actions=quiet)
    _, status, used = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps([code, used.ru_utime + used.ru_stime, wall, used.ru_maxrss * 1024]), flush=True)
"""


class Runner:
    """Runs commands from a process of its own and reads what the system accounts them for."""

    def __init__(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", RUNNER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def once(self, command: list[str], env: dict[str, str]) -> Result:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps([command, env]), file=self.process.stdin, flush=True)
        code, cpu, wall, memory = json.loads(self.process.stdout.readline())
        if code:
            raise RuntimeError(f"exit code {code}")
        return Result(cpu, wall, memory)


def median(results: list[Result]) -> Result:
    return Result(
        statistics.median(r.cpu for r in results),
        statistics.median(r.wall for r in results),
        int(statistics.median(r.memory for r in results)),
    )


def install(place: Path) -> Path:
    """The wheel by itself in an environment of its own, byte-compiled as pip does: the `weigh` in it."""
    quiet = ["--quiet", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *quiet, "--no-deps", "-w", str(place / "dist"), str(ROOT)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    wheel = next((place / "dist").glob("weighbridge-*.whl"))
    subprocess.run([str(place / "venv/bin/python"), "-m", "pip", "install", *quiet, str(wheel)], check=True, env=own)
    return place / "venv/bin/weigh"


def make_gguf(path: Path) -> None:
    """A header as Llama 3's: 128,256 tokens, 280,147 merges."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(32)
    writer.add_file_type(15)
    writer.add_token_list([f"token-{i:06d}" for i in range(128_256)])
    writer.add_token_merges([f"tok{i % 997} en{i % 991}" for i in range(280_147)])
    for layer in range(32):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            raw = np.zeros((16, 144), dtype=np.uint8)
            writer.add_tensor(f"blk.{layer}.{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_models(place: Path) -> dict[str, Path]:
    truth = json.loads((ROOT / "tests/data/real_models.json").read_text())["models"]
    configs = {model["name"]: model["config"] for model in truth}
    llama = layouts.llama(layers=126, hidden=16384, ffn=53248, heads=128, kv_heads=8, vocab=128256)
    made = {
        "405B": layouts.write_folder(
            place / "llama-405b", llama, config=configs["meta-llama/Llama-3.1-405B"], shards=191
        ),
        "deepseek": layouts.write_folder(
            place / "deepseek-v3", layouts.deepseek(configs[DEEPSEEK]), config=configs[DEEPSEEK], shards=163
        ),
        "gguf": place / "vocabulary.gguf",
    }
    make_gguf(made["gguf"])
    return made


def serve(hub: hub_server.Hub, name: str, folder: Path) -> None:
    """Puts a folder of sparse files on the local hub: heads as they are, zeros after."""
    files: dict[str, hub_server.Content] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                length = file.read(8)
                head = length + file.read(int.from_bytes(length, "little"))
            files[path.name] = hub_server.Zeros(head, path.stat().st_size)
        else:
            files[path.name] = path.read_bytes()
    hub.add(name, files)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=7, help="rounds; medians are printed")
    arguments.add_argument("--json", type=Path, help="also write the figures here")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary, hub_server.Hub() as hub:
        place = Path(temporary)
        weigh = str(install(place))
        models = make_models(place)
        serve(hub, "acme/llama-405b", models["405B"])
        serve(hub, "acme/deepseek-v3", models["deepseek"])
        scripts = {}
        for name, code in PEERS.items():
            scripts[name] = place / f"peer-{name}.py"  # "gguf.py" would stand before the gguf package
            scripts[name].write_text(code)

        def peer(name: str, *args: object) -> list[str]:
            return [sys.executable, str(scripts[name]), *map(str, args)]

        groups = {
            "help": {"weigh --help": [weigh, "--help"]},
            "405B, 191 shards, local": {
                "weigh show": [weigh, "show", str(models["405B"])],
                "weigh show --json": [weigh, "show", str(models["405B"]), "--json"],
                "safetensors safe_open": peer("safe_open", models["405B"]),
                "accelerate, meta device": peer("accelerate", models["405B"]),
            },
            "DeepSeek-V3, 163 shards, local": {
                "weigh show": [weigh, "show", str(models["deepseek"])],
                "safetensors safe_open": peer("safe_open", models["deepseek"]),
                "accelerate, meta device": peer("accelerate", models["deepseek"]),
            },
            "GGUF, 128k tokens and 280k merges": {
                "weigh show": [weigh, "show", str(models["gguf"])],
                "gguf GGUFReader": peer("gguf", models["gguf"]),
            },
            "405B, 191 shards, from the hub": {
                "weigh show": [weigh, "show", "acme/llama-405b"],
                "huggingface_hub metadata": peer("huggingface_hub", hub.endpoint, "acme/llama-405b"),
                "hf-mem": peer("hf-mem", hub.endpoint, "acme/llama-405b"),
            },
            "DeepSeek-V3, 163 shards, from the hub": {
                "weigh show": [weigh, "show", "acme/deepseek-v3"],
                "huggingface_hub metadata": peer("huggingface_hub", hub.endpoint, "acme/deepseek-v3"),
                "hf-mem": peer("hf-mem", hub.endpoint, "acme/deepseek-v3"),
            },
        }
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHONDONTWRITE"))}
        env |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(place / "hf"), "WEIGH_HOME": str(place / "weigh")}
        report(measure(groups, env, options.runs), options)


def measure(
    groups: dict[str, dict[str, list[str]]], env: dict[str, str], runs: int
) -> dict[str, dict[str, Result | str]]:
    """Each round runs the commands of a group one after the other, so that a drifting machine treats all alike."""
    found: dict[str, dict[str, Result | str]] = {}
    runner = Runner()
    for group, commands in groups.items():
        seen: dict[str, list[Result]] = {name: [] for name in commands}
        failed: dict[str, str] = {}
        for at in range(runs + 1):
            for name, command in commands.items():
                if name in failed:
                    continue
                try:
                    result = runner.once(command, env)
                except (RuntimeError, OSError) as error:
                    failed[name] = str(error)
                    continue
                if at:  # the first round warms caches and is not counted
                    seen[name].append(result)
        found[group] = {name: failed[name] if name in failed else median(seen[name]) for name in commands}
    return found


def report(found: dict[str, dict[str, Result | str]], options: argparse.Namespace) -> None:
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, {options.runs} rounds\n")
    print("| model | command | CPU ms | wall ms | memory MB | CPU, times `weigh show` |")
    print("|---|---|--:|--:|--:|--:|")
    for group, results in found.items():
        first = next(iter(results.values()))
        for name, result in results.items():
            if isinstance(result, str) or isinstance(first, str):
                print(f"| {group} | {name} | failed | | | |")
                continue
            ratio = f"{result.cpu / first.cpu:.1f}" if result is not first else ""
            row = (f"{result.cpu * 1e3:.0f}", f"{result.wall * 1e3:.0f}", f"{result.memory / 1e6:.0f}", ratio)
            print(f"| {group} | {name} | {' | '.join(row)} |")
    if options.json:
        plain = {
            group: {name: result if isinstance(result, str) else vars(result) for name, result in results.items()}
            for group, results in found.items()
        }
        options.json.write_text(json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    # Children's CPU is read from wait4: the limit on open files is raised for the server's many connections.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    main()

"""What transformers builds from a config, on PyTorch's meta device, where no blueprint knows the family.

It runs in a process of its own: it takes seconds and gigabytes of imports, a forged config may make it take forever,
and a caller who did not import transformers shall not find it imported. Code of a repository is never run.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from weighbridge.ledger.errors import Malformed, Refused, Unknown

_TIMEOUT = 120  # seconds: the largest classes of transformers take under 20
_LARGEST_FIELD = 1 << 40
_MOST_LAYERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What transformers built. Buffers are those that a checkpoint keeps."""

    class_name: str
    transformers: str
    tensors: Mapping[str, tuple[int, ...]]
    buffers: Mapping[str, tuple[tuple[int, ...], str | None]]
    ties: Mapping[str, str]
    frozen: tuple[str, ...]


def build(config: Mapping[str, object], *, why: Unknown) -> Found:
    """The model that transformers builds from a config.

    Raises:
        Unknown: transformers is not installed, or does not know the type or the class.
        Malformed: transformers refuses the config, in its own words.
    """
    if find_spec("transformers") is None or find_spec("torch") is None:
        raise Unknown(why.what, fix="pip install torch transformers: the rest is left to them")
    _refuse_absurd(config, "")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "weighbridge.formats.meta_worker"],
            input=json.dumps(config).encode(),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"transformers did not build this config within {_TIMEOUT} seconds") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Refused(f"transformers failed on this config: {last[:300] or f'exit code {done.returncode}'}") from None
    if "unknown" in answer:
        raise Unknown(f"{why.what}; {answer['unknown']}", fix=answer.get("fix", "a newer transformers may know it"))
    if "malformed" in answer:
        raise Malformed(f"{why.what}; transformers refuses this config: {answer['malformed']}")
    return Found(
        class_name=answer["class"],
        transformers=answer["transformers"],
        tensors={name: tuple(shape) for name, shape in answer["tensors"]},
        buffers={name: (tuple(shape), dtype) for name, shape, dtype in answer["buffers"]},
        ties=answer["ties"],
        frozen=tuple(answer["frozen"]),
    )


def _refuse_absurd(config: Mapping[str, object], where: str) -> None:
    """Numbers that would keep transformers busy for hours."""
    for name, value in config.items():
        path = f"{where}{name}"
        if isinstance(value, dict):
            _refuse_absurd(value, f"{path}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            layers = name.endswith(("layers", "layer", "depth", "blocks"))
            if abs(value) > _LARGEST_FIELD or (layers and value > _MOST_LAYERS):
                raise Malformed(f"config.json: {path} is {value:,}, more than any model has")

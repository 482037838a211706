"""Layers of 65 families of GGUF files: what llama.cpp allocated for each, as benchmarks/gguf_layers.py recorded it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from weighbridge.formats.config import from_gguf

ROOT = Path(__file__).parents[2]
RECORDED: dict[str, Any] = json.loads((ROOT / "tests/data/gguf_layers.json").read_text())["families"]


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location("bench_gguf_layers", ROOT / "benchmarks/gguf_layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", RECORDED)
def test_what_llama_cpp_allocates_follows_from_the_mixers(family: str, bench: Any) -> None:
    recorded = RECORDED[family]
    stated = {f"{family}.{name}": value for name, value in recorded["metadata"].items()}
    mixers = from_gguf({"general.architecture": family} | stated, bench.rows_of(recorded["tensors"])).mixers
    assert bench.expected(mixers, recorded["caches"]) == recorded["caches"]

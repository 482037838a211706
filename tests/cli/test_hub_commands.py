"""`weigh` against a hub: a local server that speaks its endpoints."""

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import layouts
import numpy as np
import pytest
from hub_server import Hub

from weighbridge.cli import main

CONFIG = {"model_type": "llama", "tie_word_embeddings": False, "num_hidden_layers": 2}
LAYOUT = layouts.llama(layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=100)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _weigh(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(list(args))
    out, err = capsys.readouterr()
    return int(exit_.value.code or 0), out, err


def _gguf(path: Path, kind: gguf.GGMLQuantizationType) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer.add_tensor("output.weight", np.zeros((4, 256 // block * size), dtype=np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_repository_is_the_folder_it_holds(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = layouts.write_folder(tmp_path / "m", LAYOUT, config=CONFIG, shards=3)
    repo = hub.add("Acme/Llama", _files(folder))
    local = json.loads(_weigh(capsys, "show", str(folder), "--json")[1])
    remote = json.loads(_weigh(capsys, "show", "Acme/Llama", "--json")[1])
    assert remote["signature"] == f"acme/llama@{repo.sha[:12]}"
    for key in ("parameters", "buffers", "extras", "tensors", "bytes", "architecture"):
        assert remote[key] == local[key]


def test_a_remote_signature_is_the_local_one(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = layouts.write_folder(tmp_path / "m", LAYOUT, config=CONFIG, shards=2)
    hub.add("acme/llama", _files(folder))
    local = json.loads(_weigh(capsys, "sign", str(folder), "--json")[1])
    remote = json.loads(_weigh(capsys, "sign", "acme/llama", "--json")[1])
    assert remote["digest"] == local["digest"]
    assert _weigh(capsys, "verify", "acme/llama", local["digest"])[0] == 0


def test_quantizations_are_listed_and_chosen(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {"Q8_0": gguf.GGMLQuantizationType.Q8_0, "Q4_0": gguf.GGMLQuantizationType.Q4_0}
    hub.add("acme/m-GGUF", {f"m-{name}.gguf": _gguf(tmp_path / name, kind) for name, kind in kinds.items()})
    status, _, err = _weigh(capsys, "show", "acme/m-GGUF")
    assert status == 2
    assert "Q4_0" in err
    assert "Q8_0" in err
    assert "::" in err
    said = json.loads(_weigh(capsys, "show", "acme/m-GGUF::q4_0", "--json")[1])
    assert said["parameters"]["by_dtype"] == {"Q4_0": 1024}
    assert "~q4_0" in said["signature"]
    assert json.loads(_weigh(capsys, "show", "acme/m-GGUF", "--file", "m-Q8_0.gguf", "--json")[1])["bytes"] == 1088


def test_an_adapter_repository_names_its_base(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora: layouts.Layout = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("BF16", (8, 64)),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": ("BF16", (64, 8)),
    }
    adapter = layouts.write_folder(tmp_path / "a", lora)
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "acme/llama", "r": 8}))
    hub.add("acme/lora", _files(adapter))
    hub.add("acme/llama", _files(layouts.write_folder(tmp_path / "m", LAYOUT, config=CONFIG)))
    said = json.loads(_weigh(capsys, "show", "acme/lora", "--json")[1])
    assert said["parameters"]["total"] == said["parameters"]["trainable"] == 1024
    assert said["signature"] == "acme/llama+acme/lora"
    said = json.loads(_weigh(capsys, "show", "acme/lora", "--base", "acme/llama", "--json")[1])
    assert said["parameters"]["trainable"] == 1024
    assert said["parameters"]["total"] > 1024


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"gated": True}, "gated"), ({"disabled": True}, "disabled"), ({"private": True}, "private")],
)
def test_what_may_not_be_read_says_why(
    hub: Hub, settings: dict[str, bool], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("acme/closed", _files(layouts.write_folder(tmp_path / "m", LAYOUT, config=CONFIG)), **settings)
    status, out, err = _weigh(capsys, "show", "acme/closed")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_offline_asks_nobody(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert _weigh(capsys, "show", "acme/llama", "--offline")[0] == 2
    assert hub.seen == []


def test_a_hub_that_is_away_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    status, _, err = _weigh(capsys, "show", "acme/llama")
    assert (status, err.count("\n")) == (2, 1)
    assert "--offline" in err

"""Checkpoints that transformers writes, weighed, against what torch itself counts."""

import json
from pathlib import Path

import pytest
import tiny
import torch
import transformers

from weighbridge.formats.models import open_model


@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_saved_model_counts_as_torch_counts_it(name: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    model.save_pretrained(tmp_path)
    ledger = open_model(str(tmp_path))
    assert ledger.total == tiny.counted(model)
    assert ledger.buffers == tiny.saved_buffers(model)
    assert ledger.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert not ledger.extras
    assert ledger.by_role().get("other", 0) < 0.005 * ledger.total


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen3-moe", "deepseek-v3", "gpt2", "t5", "whisper", "clip"])
def test_shards_change_nothing(name: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ledger = open_model(str(tmp_path))
    assert ledger.total == tiny.counted(model)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert open_model(str(tmp_path)).total == tiny.counted(model)


@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "gemma", "gpt2", "bert", "t5", "whisper", "opt", "bloom"])
def test_a_tied_model_saved_with_both_copies_has_its_parameters_once(name: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    ledger = open_model(str(tmp_path))
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    assert ledger.total == tiny.counted(model)
    assert ledger.stored == stored
    assert ledger.total + ledger.buffers + sum(ledger.extras.values()) == stored
    assert ledger.extras["tied_copies"] > 0


def test_a_head_that_is_no_copy_is_none_whatever_it_is_called(tmp_path: Path) -> None:
    """FLAVA's heads are shaped and called like its embeddings' copies, and are apart."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
    config = transformers.FlavaConfig(
        text_config={"vocab_size": 70, **sizes},
        image_config={"image_size": 32, "patch_size": 16, "vocab_size": 70, **sizes},
        multimodal_config=sizes,
        image_codebook_config={"hidden_size": 16, "vocab_size": 70},
        hidden_size=32,
        projection_dim=32,
    )
    model = transformers.FlavaForPreTraining(config)
    model.save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).total == tiny.counted(model)


@pytest.mark.parametrize(("name", "experts", "used"), [("qwen3-moe", 8, 2), ("mixtral", 4, 2), ("deepseek-v3", 8, 2)])
def test_active_parameters_leave_out_the_experts_that_a_token_does_not_use(
    name: str, experts: int, used: int, tmp_path: Path
) -> None:
    model = tiny.build(name)
    model.save_pretrained(tmp_path)
    routed = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    idle = routed * (experts - used) // experts
    embedding = model.get_input_embeddings().weight.numel()
    ledger = open_model(str(tmp_path))
    assert ledger.by_role()["expert"] == routed
    assert ledger.active == tiny.counted(model) - idle
    assert ledger.active_excluding_input_embedding == ledger.active - embedding


def test_biases_are_counted_apart(tmp_path: Path) -> None:
    model = tiny.build("gpt2")
    model.save_pretrained(tmp_path)
    biases = sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias"))
    ledger = open_model(str(tmp_path))
    assert (ledger.biases, ledger.weights) == (biases, tiny.counted(model) - biases)


def test_every_tensor_has_the_shape_dtype_and_place_that_safetensors_gives_it(tmp_path: Path) -> None:
    from safetensors import safe_open

    model = tiny.build("qwen3-moe", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    ledger = open_model(str(tmp_path))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        found = {tensor.name: tensor for tensor in ledger.tensors}
        assert found.keys() == set(file.keys())
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            value = file.get_tensor(name)
            tensor = found[name]
            raw = ledger.source.files[tensor.file].read(tensor.offset, tensor.nbytes)
            assert tensor.shape == tuple(value.shape)
            assert tensor.dtype.name == "BF16"
            assert raw == value.contiguous().view(torch.uint8).numpy().tobytes()


def test_layers_and_experts_are_read_off_the_names(tmp_path: Path) -> None:
    model = tiny.build("qwen3-moe")
    model.save_pretrained(tmp_path)
    ledger = open_model(str(tmp_path))
    layers = ledger.by_layer()
    assert [key for key in layers if key] == ["model.layers.0", "model.layers.1"]
    assert sum(sum(counts.values()) for counts in layers.values()) == ledger.total
    assert {t.expert for t in ledger.tensors if t.role == "expert"} == set(range(8))


def test_a_checkpoint_without_a_config_says_so(tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    ledger = open_model(str(tmp_path))
    assert any("config.json" in note for note in ledger.notes)


def test_a_single_file_uses_the_config_beside_it(tmp_path: Path) -> None:
    model = tiny.build("mixtral")
    model.save_pretrained(tmp_path)
    assert open_model(str(tmp_path / "model.safetensors")).active < tiny.counted(model)


def test_masks_of_old_gpt2_checkpoints_are_buffers(tmp_path: Path) -> None:
    model = tiny.build("gpt2")
    state = {k.removeprefix("transformer."): v for k, v in model.state_dict().items() if "lm_head" not in k}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    torch.save({**state, **masks}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    ledger = open_model(str(tmp_path))
    assert (ledger.total, ledger.buffers) == (tiny.counted(model), 2 * 64 * 64)

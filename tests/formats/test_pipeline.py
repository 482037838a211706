"""Diffusers pipelines: a folder of models, counted together."""

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

import weighbridge
from weighbridge.formats.models import open_model
from weighbridge.ledger.errors import NotFound


def make(folder: Path) -> int:
    """A pipeline as diffusers lays it out; returns its parameters."""
    text = tf.CLIPTextModel(
        tf.CLIPTextConfig(
            num_hidden_layers=1, hidden_size=16, intermediate_size=24, num_attention_heads=2, vocab_size=30
        )
    )
    text.save_pretrained(folder / "text_encoder")
    vae = {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3), "encoder.conv_in.bias": torch.zeros(4)}
    (folder / "vae").mkdir()
    save_file(vae, folder / "vae/diffusion_pytorch_model.safetensors")
    (folder / "vae/config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    (folder / "model_index.json").write_text(
        json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "text_encoder": ["transformers", "CLIPTextModel"],
                "vae": ["diffusers", "AutoencoderKL"],
                "scheduler": ["diffusers", "DDIMScheduler"],
                "safety_checker": [None, None],
            }
        )
    )
    return text.num_parameters() + 4 * 27 + 4


def test_a_pipeline_is_the_sum_of_its_models(tmp_path: Path) -> None:
    total = make(tmp_path)
    said = weighbridge.show(tmp_path).to_dict()
    assert said["format"] == "diffusers pipeline"
    assert said["parameters"]["total"] == total  # type: ignore[index]
    parts = said["components"]
    assert {name: part["class"] for name, part in parts.items()} == {
        "text_encoder": "CLIPTextModel",
        "vae": "AutoencoderKL",
    }  # type: ignore[union-attr]
    assert sum(part["parameters"] for part in parts.values()) == total  # type: ignore[union-attr]
    assert all(t.name.startswith(("text_encoder.", "vae.")) for t in open_model(str(tmp_path)).tensors)


def test_one_of_its_models_can_be_named(tmp_path: Path) -> None:
    make(tmp_path)
    assert open_model(f"{tmp_path}::vae").total == 4 * 27 + 4


def test_a_model_without_weights_is_missed(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(NotFound, match="vae"):
        open_model(str(tmp_path))


def test_a_part_that_is_listed_and_not_there_is_named(tmp_path: Path) -> None:
    import shutil

    make(tmp_path)
    shutil.rmtree(tmp_path / "scheduler")  # it has no weights
    open_model(str(tmp_path))
    shutil.rmtree(tmp_path / "vae")
    with pytest.raises(NotFound, match=r"lacks vae \(AutoencoderKL\)"):
        open_model(str(tmp_path))

"""Towers and their projectors, against the modules that transformers builds."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import weighbridge


@pytest.mark.parametrize(
    ("model_type", "class_name", "tower", "projectors", "facts"),
    [
        ("llava", "LlavaForConditionalGeneration", "model.vision_tower", ["model.multi_modal_projector"],
         {"patch": 14}),
        ("qwen2_vl", "Qwen2VLForConditionalGeneration", "model.visual", ["model.visual.merger"], {"hidden": 1280}),
        ("qwen2_audio", "Qwen2AudioForConditionalGeneration", "model.audio_tower", ["model.multi_modal_projector"],
         {"mel_bins": 128}),
        ("mllama", "MllamaForConditionalGeneration", "model.vision_model", ["model.multi_modal_projector"],
         {"image": 448}),
        ("clip", "CLIPModel", "vision_model", ["visual_projection"], {"patch": 32}),
        ("llama4", "Llama4ForConditionalGeneration", "vision_model",
         ["vision_model.vision_adapter", "multi_modal_projector"], {"layers": 34}),
    ],
)  # fmt: skip
def test_a_tower_and_its_projectors_have_the_parameters_of_their_modules(
    model_type: str, class_name: str, tower: str, projectors: list[str], facts: dict[str, int]
) -> None:
    with torch.device("meta"):
        model = getattr(tf, class_name)._from_config(tf.CONFIG_MAPPING[model_type]())

    def counted(module: str) -> int:
        return sum(p.numel() for p in model.get_submodule(module).parameters())

    architecture: Any = weighbridge.show(arch=model_type).data["architecture"]
    (said,) = architecture["towers"]
    assert (said["module"], said["parameters"]) == (tower, counted(tower))
    assert architecture["projectors"] == {module: counted(module) for module in projectors}
    assert facts.items() <= said.items()


def test_files_tell_of_towers_what_the_config_alone_does(tmp_path: Path) -> None:
    text = tf.LlamaConfig(
        num_hidden_layers=1, hidden_size=32, intermediate_size=48, num_attention_heads=4, vocab_size=60
    )
    seeing = tf.CLIPVisionConfig(
        num_hidden_layers=2, hidden_size=24, intermediate_size=40, num_attention_heads=2, image_size=28
    )
    model = tf.LlavaForConditionalGeneration(tf.LlavaConfig(text_config=text, vision_config=seeing))
    model.save_pretrained(tmp_path)
    stored: Any = weighbridge.show(tmp_path).data["architecture"]
    live: Any = weighbridge.show(model).data["architecture"]
    assert live["towers"][0]["parameters"] == sum(p.numel() for p in model.model.vision_tower.parameters())
    assert sum(live["projectors"].values()) == sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    # Files of LLaVA have names of their own for the same modules.
    assert stored["towers"] == [live["towers"][0] | {"module": "vision_tower"}]
    assert list(stored["projectors"].values()) == list(live["projectors"].values())


def test_a_model_of_text_has_none() -> None:
    assert "towers" not in weighbridge.show(arch="llama").data["architecture"]

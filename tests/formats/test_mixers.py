"""How layers mix tokens, against the attributes of the modules that transformers builds."""

from typing import Any

import pytest
import torch
import transformers as tf
from transformers.models.auto.modeling_auto import MODEL_MAPPING

import weighbridge


def architecture(model_type: str, **fields: Any) -> Any:
    return weighbridge.show(arch=model_type, settings=fields).data["architecture"]


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("modernbert", {"num_hidden_layers": 5}),
        ("modernbert", {"num_hidden_layers": 4, "global_attn_every_n_layers": 2, "local_attention": 96}),
        ("ultrabert", {"num_hidden_layers": 5}),
        ("openai_privacy_filter", {"num_hidden_layers": 2}),
        ("gemma3_text", {"num_hidden_layers": 7, "use_bidirectional_attention": True}),
        ("gemma2", {"num_hidden_layers": 3}),
        ("mimi", {"num_hidden_layers": 2}),
    ],
)
def test_each_layer_has_the_window_of_its_attention(model_type: str, fields: dict[str, Any]) -> None:
    config = tf.CONFIG_MAPPING[model_type](**fields)
    with torch.device("meta"):
        model = MODEL_MAPPING[type(config)](config)
    windows = [m.sliding_window for m in model.modules() if hasattr(m, "sliding_window") and hasattr(m, "q_proj")]
    windows = windows or [m.sliding_window for m in model.modules() if hasattr(m, "Wqkv")]
    assert [mixer.get("window") for mixer in architecture(model_type, **fields)["mixers"]] == windows != []


@pytest.mark.parametrize("model_type", ["t5gemma", "t5gemma2"])
def test_an_encoder_has_windows_of_its_own(model_type: str) -> None:
    config = tf.CONFIG_MAPPING[model_type]()
    with torch.device("meta"):
        model = MODEL_MAPPING[type(config)](config)
    encoder = getattr(model.encoder, "text_model", model.encoder)
    said = [m.get("window") for m in architecture(model_type)["mixers"] if m["kind"] == "bidirectional"]
    assert [window for window in said if window] == [
        layer.self_attn.sliding_window for layer in encoder.layers if layer.self_attn.sliding_window
    ]


@pytest.mark.parametrize(
    ("model_type", "towers"),
    [
        ("detr", {"vision"}),
        ("segformer", {"vision"}),
        ("eomt", {"vision"}),
        ("parakeet_ctc", {"audio"}),
        ("wav2vec2", {"audio"}),
        ("whisper", {"audio", "text"}),
        ("speech_to_text", {"audio", "text"}),
        ("grounding-dino", {"vision", "text"}),
        ("granite4_vision_text", {"text"}),
        ("higgs_audio_v2", {"text"}),
        ("bert", {"text"}),
    ],
)
def test_layers_belong_to_what_they_see_or_hear(model_type: str, towers: set[str]) -> None:
    assert {mixer["tower"] for mixer in architecture(model_type)["mixers"]} == towers


@pytest.mark.parametrize(
    ("model_type", "decoder"),
    [
        ("blenderbot", "decoder"),
        ("speech_to_text", "decoder"),
        ("prophetnet", "decoder"),
        ("dia", "decoder"),
        ("bart", "decoder"),
    ],
)
def test_layers_and_heads_of_an_encoder_decoder_are_its_decoders(model_type: str, decoder: str) -> None:
    config = tf.CONFIG_MAPPING[model_type]()
    with torch.device("meta"):
        model = MODEL_MAPPING[type(config)](config)
    said = architecture(model_type)
    assert said["layers"] == len(model.get_submodule(decoder).layers)
    assert said["heads"] == config.get_text_config(decoder=True).num_attention_heads


def test_heads_of_latent_attention_are_as_wide_as_their_queries() -> None:
    config = tf.DeepseekV3Config(num_hidden_layers=1)
    said = architecture("deepseek_v3", num_hidden_layers=1)
    assert said["head_dim"] == config.qk_head_dim == 192

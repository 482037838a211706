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


def built(model_type: str, fields: dict[str, Any]) -> Any:
    config = tf.CONFIG_MAPPING[model_type](**fields)
    with torch.device("meta"):
        return MODEL_MAPPING[type(config)](config)


@pytest.mark.parametrize("windows", [512, [32, 64, 128]])
def test_longformers_layers_see_windows_of_their_own(windows: int | list[int]) -> None:
    for model_type, layers in (("longformer", "num_hidden_layers"), ("led", "encoder_layers")):
        fields = {layers: 3, "attention_window": windows}
        sides = [
            m.one_sided_attn_window_size for m in built(model_type, fields).modules() if hasattr(m, "query_global")
        ]
        said = [m["window"] for m in architecture(model_type, **fields)["mixers"] if m["kind"] == "bidirectional"]
        assert said == [2 * side for side in sides]
        assert len(said) == 3


def test_long_t5_sees_as_far_as_its_radius() -> None:
    fields = {"num_layers": 2, "local_radius": 31, "encoder_attention_type": "transient-global"}
    blocks = [m.block_len for m in built("longt5", fields).modules() if hasattr(m, "block_len") and hasattr(m, "q")]
    mixers = architecture("longt5", **fields)["mixers"]
    assert [m["window"] for m in mixers if m["kind"] == "bidirectional"] == [2 * block - 1 for block in blocks]
    assert all("window" not in m for m in mixers if m["kind"] != "bidirectional")


@pytest.mark.parametrize("model_type", ["big_bird", "bigbird_pegasus"])
def test_big_birds_blocks_are_those_of_its_modules(model_type: str) -> None:
    layers = "num_hidden_layers" if model_type == "big_bird" else "encoder_layers"
    fields = {layers: 2, "block_size": 16, "num_random_blocks": 2}
    sparse = [
        (m.block_size, m.num_random_blocks)
        for m in built(model_type, fields).modules()
        if hasattr(m, "num_random_blocks")
    ]
    said = [m for m in architecture(model_type, **fields)["mixers"] if m["kind"] == "bidirectional"]
    assert [(m["block"], m["random_blocks"]) for m in said] == sparse
    full = architecture(model_type, attention_type="original_full", **fields)["mixers"]
    assert all("window" not in m and "block" not in m for m in full)


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

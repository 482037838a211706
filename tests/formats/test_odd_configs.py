"""Configs that are broken or say odd things: counted as transformers builds them, or refused with the field's name."""

import importlib
import json
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers as tf
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weighbridge
from weighbridge.formats import configured
from weighbridge.formats.blueprints import library
from weighbridge.ledger.errors import Malformed, Refused, WeighError

ROOT = Path(__file__).parents[2]
_REFUSALS = (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, AssertionError, RuntimeError)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@lru_cache(maxsize=1)
def bench() -> ModuleType:
    """The benchmark that draws odd configs and builds them with transformers."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("odd_configs")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def weigh(config: dict[str, Any]) -> Any:
    return configured.ledger_of(config, location="test", name="test")


def built(model_class: str, config: Any) -> int:
    with torch.device("meta"):
        model = getattr(tf, model_class)(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "model_type", ["llama", "t5", "bert", "vit", "mamba2", "qwen2_moe", "gemma3_text", "llava", "swin", "wav2vec2"]
)
def test_an_odd_field_is_counted_as_transformers_builds_it_or_refused_by_its_name(model_type: str) -> None:
    family = library.family_of(model_type)
    assert family is not None
    usual = family.class_part(model_type, None)[0]

    @QUICK
    @given(st.integers(0, 1 << 20))
    def check(seed: int) -> None:
        for config, odd in bench().OddDrawer(model_type, seed).cases(1):
            outcome, said = bench().one_case(config, odd, model_type, usual, both=False)
            assert outcome in ("equal", "refused"), (odd, said)

    check()


@pytest.mark.parametrize(
    ("model_type", "model_class"),
    [
        ("t5", "T5ForConditionalGeneration"),
        ("mt5", "MT5ForConditionalGeneration"),
        ("umt5", "UMT5ForConditionalGeneration"),
        ("longt5", "LongT5ForConditionalGeneration"),
        ("switch_transformers", "SwitchTransformersForConditionalGeneration"),
    ],
)
@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 3},
        {"num_layers": 3},
        {"num_layers": 3, "num_decoder_layers": None},
        {"num_layers": 3, "num_decoder_layers": 1},
        {"num_hidden_layers": 3, "num_decoder_layers": 2},
    ],
)
def test_layers_under_another_name_come_too_late_for_what_is_derived_from_them(
    model_type: str, model_class: str, fields: dict[str, Any]
) -> None:
    truth = built(model_class, tf.CONFIG_MAPPING[model_type].from_dict(dict(fields)))
    assert weigh({"model_type": model_type, **fields}).total == truth


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"model_type": "zamba2", "num_hidden_layers": 12},
            "layers_block_type has 54 entries, num_hidden_layers is 12",
        ),
        ({"model_type": "mamba2", "hidden_size": 1024}, "hidden_size is 1024, expand is 2"),
        ({"model_type": "gpt_neo", "num_layers": 12}, "attention_types"),
        ({"model_type": "t5", "feed_forward_proj": "gated-odd"}, "feed_forward_proj is 'gated-odd'"),
        ({"model_type": "llama", "hidden_act": "silux"}, "hidden_act is 'silux'.* did you mean silu"),
        ({"model_type": "llava", "projector_hidden_act": None}, "projector_hidden_act is null"),
        ({"model_type": "llava", "vision_feature_layer": None}, "vision_feature_layer is null"),
        ({"model_type": "lfm2", "block_ff_dim": None}, "block_ff_dim is null"),
        ({"model_type": "ministral3", "num_key_value_heads": None}, "num_key_value_heads is null"),
        ({"model_type": "llama", "attention_bias": None}, "attention_bias is null; it should be true or false"),
        ({"model_type": "llama", "attention_bias": 1}, "attention_bias is 1; it should be true or false"),
        ({"model_type": "llama", "num_key_value_heads": True}, "num_key_value_heads is true"),
        ({"model_type": "llama", "vocab_size": "32000"}, "vocab_size is '32000'; it should be a whole number"),
        ({"model_type": "llama", "hidden_size": 4096.0}, "hidden_size is 4096.0; it should be a whole number"),
        ({"model_type": "llama", "head_dim": 65}, "head_dim is 65"),
        ({"model_type": "qwen3_moe", "num_experts": 10**12}, "num_experts is 1000000000000"),
        ({"model_type": "llama", "num_hidden_layers": 90_000}, "num_hidden_layers is 90000"),
        ({"model_type": "bert", "num_labels": 10**12}, "num_labels is 1000000000000"),
        ({"model_type": "bert", "id2label": ["yes", "no"]}, "id2label"),
        ({"model_type": "bert", "hidden_dropout_prob": 10}, "hidden_dropout_prob is 10; it should be between 0 and 1"),
        ({"model_type": "bert", "add_cross_attention": True}, "add_cross_attention is true"),
        ({"model_type": "longformer", "attention_window": 33}, "attention_window is 33"),
        ({"model_type": "llava", "vision_config": {"hidden_act": "odd"}}, r"vision_config\.hidden_act is 'odd'"),
    ],
)
def test_a_field_that_transformers_refuses_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(WeighError, match=named) as caught:
        weigh(fields)
    assert "\n" not in str(caught.value)
    if not any(isinstance(value, int) and value >= 90_000 for value in fields.values()):  # those it may try to build
        family = library.family_of(fields["model_type"])
        assert family is not None
        usual = family.class_part(fields["model_type"], None)[0]
        with pytest.raises(_REFUSALS):
            built(usual, tf.CONFIG_MAPPING[fields["model_type"]].from_dict(dict(fields)))


def test_a_part_of_a_flat_config_is_not_put_in_place_of_its_sizes(tmp_path: Path) -> None:
    flat = {"model_type": "qwen2_vl", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
            "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(flat))
    with pytest.raises(Refused, match="at the top, such as hidden_size; --set num_hidden_layers=VALUE"):
        weighbridge.show(tmp_path, settings={"text_config.num_hidden_layers": 2})
    two = weighbridge.show(tmp_path, settings={"num_hidden_layers": 2}).data["parameters"]["total"]
    assert two == weigh({**flat, "num_hidden_layers": 2}).total


def test_a_type_that_nobody_knows_is_said_to_be_counted_by_its_class() -> None:
    ledger = weigh({"model_type": "llama9", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2})
    assert any("llama9" in note and "LlamaForCausalLM" in note for note in ledger.notes)


@pytest.mark.parametrize("path", ["num_hidden_layers", "num_layers"])
def test_a_field_that_a_class_only_computes_is_not_suggested_for_itself(path: str) -> None:
    with pytest.raises(Refused, match="no such field") as caught:
        weighbridge.show(arch="swin", settings={path: 3})
    assert path not in str(caught.value).partition("did you mean")[2]


def test_a_field_of_a_part_that_no_class_counts_is_held_to_its_kind_too() -> None:
    with pytest.raises(Malformed, match=r"codec_config\.audio_channels is 'odd'"):
        weigh({"model_type": "csm", "codec_config": {"audio_channels": "odd"}, "architectures": ["CsmBackboneModel"]})

"""Models from their config.json alone, against real configs' published counts and against what transformers builds."""

import contextlib
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from functools import lru_cache
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weighbridge
from weighbridge.formats import blueprints, configured
from weighbridge.formats.blueprints import library
from weighbridge.formats.blueprints.language import Mistake, parse
from weighbridge.formats.mixing import mixers_of, routers_of
from weighbridge.ledger import Mixer
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Unknown, WeighError

ROOT = Path(__file__).parents[2]
_LINES = (ROOT / "tests/data/configs.jsonl").read_text().splitlines()[1:]
REAL = {row["name"]: row for row in map(json.loads, _LINES)}
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@lru_cache(maxsize=1)
def bench() -> ModuleType:
    """The benchmark that draws configs and builds them with transformers."""
    spec = importlib.util.spec_from_file_location("bench_blueprints", ROOT / "benchmarks/blueprints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weigh(config: dict[str, Any]) -> Any:
    return configured.ledger_of(config, location="test", name="test")


# Real configs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REAL)
def test_a_real_config_is_counted_to_the_element_by_its_blueprint(name: str) -> None:
    truth = REAL[name]
    ledger = weigh(truth["config"])
    assert str(ledger.metadata["built"]["by"]).startswith("the blueprint")
    assert (ledger.total, ledger.buffers, ledger.biases) == (truth["total"], truth["buffers"], truth["biases"])
    if truth["active"] is not None:
        assert ledger.active == truth["active"]


def _kept(mixer: Mixer, nbytes: int = 2) -> int:
    """Bytes that a layer keeps of one token."""
    if mixer.kind == "latent":
        assert mixer.kv_rank is not None
        assert mixer.rope_dim is not None
        return (mixer.kv_rank + mixer.rope_dim) * nbytes
    assert mixer.kv_heads is not None
    assert mixer.head_dim is not None
    return mixer.kv_heads * (mixer.head_dim + (mixer.value_dim or mixer.head_dim)) * nbytes


# The table's formula takes each layer for one of self-attention with `num_key_value_heads`: not so in encoders, in
# Jamba's state spaces, in Llama 3.2's cross-attention, in SantaCoder's one head. Step-3.7's config states the language
# model's fields at the top, where transformers' class does not look for them.
_OTHERWISE = ("bert-", "clip-", "vit-", "Jamba", "Llama-3.2-11B-Vision", "santacoder", "Step-3.7")


@pytest.mark.parametrize("name", [n for n, t in REAL.items() if t["kv"] and not any(word in n for word in _OTHERWISE)])
def test_the_kv_cache_of_a_real_config_follows_from_its_layers(name: str) -> None:
    truth = REAL[name]["kv"]
    mixers = [m for m in weigh(REAL[name]["config"]).architecture.mixers if m.tower == "text"]
    full = sum(_kept(m) for m in mixers if m.kind in ("full", "latent"))
    windowed = [m for m in mixers if m.kind in ("sliding", "chunked")]
    if truth["kind"] == "swa" or "full_layers" in truth:
        assert full == truth["bytes_per_token_bf16_full_layers"]
        assert sum(map(_kept, windowed)) == truth["bytes_per_window_token_bf16_sliding_layers"]
        assert len(windowed) == truth["sliding_layers"]
        assert sum(m.kind == "linear" for m in mixers) == truth["linear_layers"]
        assert {m.window for m in windowed} == ({truth["window"]} if windowed else set())
    else:
        assert full + sum(map(_kept, windowed)) == truth["bytes_per_token_bf16"]


def test_deepseek_v3_keeps_70272_bytes_a_token_and_v32_the_keys_of_an_indexer_too() -> None:
    mixers = weigh(REAL["deepseek-ai/DeepSeek-V3"]["config"]).architecture.mixers
    assert sum(map(_kept, mixers)) == 70_272
    assert all(m.indexer is None for m in mixers)
    assert {m.indexer for m in weigh(REAL["deepseek-ai/DeepSeek-V3.2"]["config"]).architecture.mixers} == {(64, 128)}


# What transformers builds --------------------------------------------------------------------------------------------


def _compare(config: dict[str, Any], class_name: str) -> bool:
    """Names, shapes, buffers and ties equal what transformers builds. False where it builds nothing: no case."""
    model_type = config["model_type"]
    try:
        _, truth = bench().reference(config, model_type, class_name)
    except Exception:
        return False
    built = blueprints.build(config, model_type=model_type, class_name=class_name)
    assert bench().difference(built, truth) == ""
    return True


# The first two are configs inside others that no class is built from alone. The others need timm, which needs
# torchvision: benchmarks/timm_models.py recorded what they are.
_NOT_HERE = {
    "sapiens2_head",
    "pp_chart2table_vision",
    "gemma3n",
    "gemma3n_vision",
    "fast_vlm",
    "perception_lm",
    "timm_wrapper",
    "timm_backbone",
}
_OVER_TIMM = json.loads((ROOT / "tests/data/timm.json").read_text())["models"]
_IN_TRANSFORMERS = [name for name in library.types() if name in bench().CONFIG_MAPPING and name not in _NOT_HERE]


@pytest.mark.parametrize("row", _OVER_TIMM, ids=lambda row: f"{row['class']}-{row['parameters']}")
def test_models_over_timm_equal_what_timm_built_when_it_was_recorded(row: dict[str, Any]) -> None:
    built = blueprints.build(row["config"], model_type=row["config"]["model_type"], class_name=row["class"])
    lines = [f"parameter {name} {list(shape)}" for name, shape in built.tensors.items()]
    lines += [f"buffer {name} {list(shape)}" for name, (shape, _) in built.buffers.items()]
    assert sum(map(prod, built.tensors.values())) == row["parameters"]
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == row["digest"]


@pytest.mark.parametrize("model_type", _IN_TRANSFORMERS)
def test_every_type_equals_transformers_tensor_by_tensor(model_type: str) -> None:
    """The usual class of the type's default config, and of one drawn anew. benchmarks/blueprints.py has all classes."""
    family = library.family_of(model_type)
    assert family is not None
    usual, part = family.class_part(model_type, None)
    assert part is not None
    row: dict[str, Any] = {"equal": 0, "refused": 0, "not_built": 0, "refusals": {}}
    drawer = bench().Drawer(model_type, seed=11)
    for config in (drawer.config(0), drawer.config(2)):
        assert bench().one_case(config, model_type, usual, row) == ""
    if not row["equal"]:  # few layers suit not every type
        assert bench().one_case(bench().default_of(model_type), model_type, usual, row) == ""
    assert row["equal"], row


_SMALL = st.sampled_from([1, 2, 3, 5])


@st.composite
def decoder(draw: st.DrawFn) -> dict[str, Any]:
    """A decoder's widths, such that heads divide what they must."""
    kv = draw(st.sampled_from([1, 2, 4]))
    heads = kv * draw(st.sampled_from([1, 2, 4]))
    return {
        "num_hidden_layers": draw(_SMALL),
        "hidden_size": heads * draw(st.sampled_from([8, 16, 40])),
        "intermediate_size": draw(st.integers(8, 300)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": draw(st.integers(50, 1000)),
        "tie_word_embeddings": draw(st.booleans()),
    }


@st.composite
def encoder(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([1, 2, 4, 12]))
    return {
        "num_hidden_layers": draw(_SMALL),
        "hidden_size": heads * draw(st.sampled_from([8, 16, 24])),
        "intermediate_size": draw(st.integers(8, 300)),
        "num_attention_heads": heads,
        "vocab_size": draw(st.integers(50, 1000)),
        "max_position_embeddings": draw(st.integers(8, 600)),
        "type_vocab_size": draw(st.sampled_from([1, 2])),
        "num_labels": draw(st.sampled_from([1, 2, 7])),
    }


_HEAD_DIM = st.fixed_dictionaries({}, optional={"head_dim": st.sampled_from([8, 32, 64])})
_EXPERTS = st.fixed_dictionaries(
    {"num_experts": st.sampled_from([2, 6, 8]), "moe_intermediate_size": st.integers(8, 90)}
)
_BIAS = st.fixed_dictionaries({}, optional={"attention_bias": st.booleans(), "mlp_bias": st.booleans()})
_NO_MORE = st.just({})
_T5 = st.fixed_dictionaries(
    {
        "num_layers": _SMALL,
        "num_decoder_layers": _SMALL,
        "d_model": st.sampled_from([32, 48]),
        "d_kv": st.sampled_from([8, 16]),
        "num_heads": st.sampled_from([2, 3]),
        "d_ff": st.integers(16, 99),
        "feed_forward_proj": st.sampled_from(["relu", "gated-gelu"]),
        "tie_word_embeddings": st.booleans(),
    }
)
_PAD = st.just({"pad_token_id": 0})  # the default lies beyond a small vocabulary
_SEQ2SEQ = st.fixed_dictionaries(
    {
        "encoder_layers": _SMALL,
        "decoder_layers": _SMALL,
        "d_model": st.sampled_from([32, 48]),
        "encoder_attention_heads": st.sampled_from([2, 4]),
        "decoder_attention_heads": st.sampled_from([2, 4]),
        "encoder_ffn_dim": st.integers(16, 99),
        "decoder_ffn_dim": st.integers(16, 99),
        "vocab_size": st.integers(60, 500),
    }
)
_VIT = st.fixed_dictionaries(
    {
        "num_hidden_layers": _SMALL,
        "hidden_size": st.sampled_from([24, 48]),
        "num_attention_heads": st.sampled_from([1, 2, 4]),
        "intermediate_size": st.integers(8, 90),
        "image_size": st.sampled_from([32, 48, 224]),
        "patch_size": st.sampled_from([8, 16]),
        "num_labels": st.sampled_from([1, 3]),
    }
)
_MLA = st.fixed_dictionaries(
    {
        "num_hidden_layers": st.sampled_from([2, 4]),
        "first_k_dense_replace": st.sampled_from([0, 1, 3]),
        "n_routed_experts": st.sampled_from([4, 8]),
        "n_shared_experts": st.sampled_from([1, 2]),
        "moe_intermediate_size": st.integers(8, 90),
        "q_lora_rank": st.sampled_from([None, 24]),
        "kv_lora_rank": st.sampled_from([16, 40]),
    }
)
# {type: (class, what is drawn)}: the commonest families on the hub.
COMMON: dict[str, tuple[str, list[st.SearchStrategy[dict[str, Any]]]]] = {
    "llama": ("LlamaForCausalLM", [decoder(), _HEAD_DIM, _BIAS]),
    "mistral": ("MistralForCausalLM", [decoder(), _HEAD_DIM]),
    "qwen2": ("Qwen2ForCausalLM", [decoder()]),
    "qwen3": ("Qwen3ForCausalLM", [decoder(), _HEAD_DIM]),
    "qwen3_moe": ("Qwen3MoeForCausalLM", [decoder(), _EXPERTS]),
    "qwen2_moe": ("Qwen2MoeForCausalLM", [decoder(), _EXPERTS]),
    "mixtral": (
        "MixtralForCausalLM",
        [decoder(), st.fixed_dictionaries({"num_local_experts": st.sampled_from([2, 4])})],
    ),
    "gemma": ("GemmaForCausalLM", [decoder(), _HEAD_DIM]),
    "gemma2": ("Gemma2ForCausalLM", [decoder(), _HEAD_DIM]),
    "gemma3_text": ("Gemma3ForCausalLM", [decoder(), _HEAD_DIM]),
    "phi3": ("Phi3ForCausalLM", [decoder(), _PAD]),
    "deepseek_v3": ("DeepseekV3ForCausalLM", [_MLA]),
    "gpt2": ("GPT2LMHeadModel", [st.fixed_dictionaries({"n_layer": _SMALL, "n_embd": st.sampled_from([24, 48])})]),
    "gpt_neox": ("GPTNeoXForCausalLM", [decoder()]),
    "bert": ("BertForMaskedLM", [encoder()]),
    "roberta": ("RobertaForSequenceClassification", [encoder()]),
    "distilbert": (
        "DistilBertForMaskedLM",
        [st.fixed_dictionaries({"n_layers": _SMALL, "hidden_dim": st.integers(8, 90)})],
    ),
    "t5": ("T5ForConditionalGeneration", [_T5]),
    "bart": ("BartForConditionalGeneration", [_SEQ2SEQ]),
    "whisper": ("WhisperForConditionalGeneration", [_SEQ2SEQ, _PAD]),
    "vit": ("ViTForImageClassification", [_VIT]),
}


@pytest.mark.parametrize("model_type", COMMON)
def test_the_commonest_families_equal_transformers_whatever_their_widths(model_type: str) -> None:
    class_name, parts = COMMON[model_type]
    compared: list[bool] = []

    @QUICK
    @given(st.tuples(*parts))
    def check(drawn: tuple[dict[str, Any], ...]) -> None:
        config: dict[str, Any] = {"model_type": model_type}
        for part in drawn:
            config |= part
        compared.append(_compare(config, class_name))

    check()
    assert sum(compared) >= len(compared) // 4 > 0


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "gemma3_text", "gpt_oss", "llama4_text", "qwen3_next", "lfm2", "mamba2", "jamba",
                   "falcon_h1", "nemotron_h", "mimo_v2_flash", "cohere2", "starcoder2", "gpt_bigcode", "gemma2",
                   "deepseek_v4"]
)  # fmt: skip
def test_layers_are_as_the_cache_that_transformers_fills(model_type: str) -> None:
    row: dict[str, Any] = {}
    assert bench().cache_case(model_type, row) == []
    assert "cache_not_run" not in row


def test_absent_is_not_null() -> None:
    lite = {"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"], "vocab_size": 102400,
            "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
            "num_attention_heads": 16, "n_shared_experts": 2, "n_routed_experts": 64, "kv_lora_rank": 512,
            "num_experts_per_tok": 6, "first_k_dense_replace": 1}  # fmt: skip
    # DeepSeek-V2-Lite has no query rank. Its config says null; left out, the class fills in 1,536.
    assert weigh({**lite, "q_lora_rank": None}).total == 15_706_484_224
    assert weigh(lite).total == 15_748_993_024 != weigh({**lite, "q_lora_rank": None}).total


def test_the_class_in_architectures_decides_what_is_counted() -> None:
    config = {"model_type": "bert", "num_labels": 3}
    base = weigh({**config, "architectures": ["BertModel"]}).total
    assert base == 109_482_240
    assert weigh({**config, "architectures": ["BertForSequenceClassification"]}).total == base + 3 * 768 + 3
    usual = weigh(config)
    assert usual.metadata["built"]["class"] == "BertForMaskedLM"
    assert any("BertForMaskedLM" in note for note in usual.notes)
    # A class without a type decides, too, unless the config brings code of its own.
    assert (
        weigh({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}).metadata["built"]["class"]
        == "LlamaForCausalLM"
    )


# Reports -------------------------------------------------------------------------------------------------------------


def test_nothing_but_the_standard_library_and_msgspec_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL["deepseek-ai/DeepSeek-V3"]["config"]))
    code = (
        "import sys, weighbridge; before = set(sys.modules)\n"
        f"total = weighbridge.show({str(tmp_path)!r}).to_dict()['parameters']['total']\n"
        "loaded = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(total, sorted(loaded & {'torch', 'transformers', 'numpy', 'click', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "671026404352 []"


def test_a_what_if_is_the_config_with_that_field() -> None:
    shown = weighbridge.show(arch="llama", settings={"num_hidden_layers": 40, "hidden_size": 5120}).to_dict()
    assert (
        shown["parameters"]["total"]
        == weigh({"model_type": "llama", "num_hidden_layers": 40, "hidden_size": 5120}).total
    )  # type: ignore[index]
    inner = weighbridge.show(arch="llava", settings={"text_config.num_hidden_layers": 2}).to_dict()
    assert inner["parameters"]["total"] < weighbridge.show(arch="llava").to_dict()["parameters"]["total"]  # type: ignore[index]


def test_the_closed_form_comes_to_the_total() -> None:
    explained = weighbridge.show(arch="llama", settings={"num_key_value_heads": 8}, explain=True).to_dict()["explain"]
    form = explained["closed_form"]  # type: ignore[index]
    text, _, legend = form.partition(", where ")
    formula, _, total = text.partition(" = ")
    values = {m[1]: int(m[2].replace(",", "")) for m in re.finditer(r"(\w+) = ([\d,]*\d)", legend)}
    assert eval(formula.replace(" x ", " * "), {}, values) == int(total.replace(",", ""))
    assert "num_hidden_layers x (" in formula


def test_a_config_says_what_its_bytes_mean() -> None:
    assert weigh({"model_type": "gpt2", "dtype": "bfloat16"}).nbytes == 2 * 124_439_808
    assert weigh({"model_type": "gpt2", "torch_dtype": "float16"}).nbytes == 2 * 124_439_808
    plain = weigh({"model_type": "gpt2"})
    assert plain.nbytes == 4 * 124_439_808
    assert any("no dtype" in note for note in plain.notes)
    coded = weigh({"model_type": "gpt2", "quantization_config": {"quant_method": "fp8"}})
    assert any("fp8" in note and "before quantization" in note for note in coded.notes)


def test_a_model_of_layers_with_different_numbers_of_experts_has_an_active_count() -> None:
    ledger = weigh(REAL["meta-llama/Llama-4-Maverick-17B-128E-Instruct"]["config"])
    assert {r.experts for r in ledger.architecture.routers} == {128}
    assert len(ledger.architecture.routers) == 24


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": -5}, "hidden_size"),
        ({"hidden_size": 4096.5}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"num_hidden_layers": [1, 2]}, "num_hidden_layers"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"vocab_size": {"a": 1}}, "vocab_size"),
        ({"head_dim": [64]}, "head_dim"),
        ({"head_dim": -1}, "head_dim is -1;"),
        ({"num_key_value_heads": -3}, "num_key_value_heads is -3;"),
        ({"model_type": "mixtral", "num_local_experts": -1}, "num_local_experts is -1;"),
        ({"model_type": "qwen3", "layer_types": []}, r"layer_types has 0 entries"),
        ({"model_type": "deepseek_v3", "n_shared_experts": -1}, "n_shared_experts is -1;"),
        ({"torch_dtype": "float7"}, "torch_dtype"),
        ({"architectures": 7}, "architectures"),
        ({"model_type": ["llama"]}, "model_type"),
    ],
)
def test_a_bad_field_is_named_in_one_line(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(WeighError, match=named) as caught:
        weigh({"model_type": "llama", **fields})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_text_times_a_number_makes_no_endless_text() -> None:
    with pytest.raises(Malformed, match="head_dim"):
        weigh({"model_type": "llama", "head_dim": "x" * 1000, "num_attention_heads": 1 << 30})


@pytest.mark.parametrize("model_type", library.types())
def test_no_config_of_nonsense_escapes_as_anything_but_a_refusal(model_type: str) -> None:
    family = library.family_of(model_type)
    assert family is not None
    table = blueprints.class_of(model_type)
    names = list(table.defaults if table else {})[:60] or ["hidden_size"]
    for value in (None, -1, 0, "x", 1.5, [], [None], {}, 10**13, True):
        for config in (dict.fromkeys(names, value), {names[0]: value}):
            with contextlib.suppress(WeighError):
                blueprints.build(config, model_type=model_type)


@pytest.mark.parametrize(
    "model_type", ["luke", "flava", "pop2piano", "t5", "bert", "llava", "marian", "whisper", "clip"]
)
def test_a_ledger_counts_just_what_the_blueprint_builds(model_type: str) -> None:
    # The ledger once took heads for copies of embeddings that the class does not tie.
    built = blueprints.build({"model_type": model_type}, model_type=model_type)
    assert weigh({"model_type": model_type}).total == sum(map(prod, built.tensors.values()))


def test_a_type_that_transformers_knows_is_not_counted_as_another_by_its_class() -> None:
    config = {"model_type": "embedding_gemma2", "architectures": ["EmbeddingGemma2Model"]}
    assert weigh(config).total == 271_002_624  # transformers 5.23 on the meta device


def test_a_width_that_a_config_states_beats_the_one_that_its_class_derives() -> None:
    fields = {"expand": 16, "hidden_size": 4096, "intermediate_size": 8192, "num_hidden_layers": 64}
    config = {"model_type": "falcon_mamba", **fields, "vocab_size": 65024, "tie_word_embeddings": False}
    assert weigh(config).total == 7_272_665_088  # transformers 5.23 on the meta device


def test_a_type_that_nobody_knows_is_left_to_transformers_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from weighbridge.formats import meta

    unlisted = next(t for t in ("timm_wrapper", "xlnet", "rag", "vits", "lxmert", "evolla") if t not in library.types())
    with pytest.raises(WeighError):
        weigh({"model_type": "nonesuch"})
    monkeypatch.setattr(meta, "find_spec", lambda _: None)
    with pytest.raises(Unknown, match="pip install torch transformers"):
        weigh({"model_type": unlisted})


@pytest.mark.parametrize(
    "model_type",
    ["gemma4_text", "gemma4_unified_text", "embedding_gemma2_text", "neomme", "step3p5", "dab-detr", "mamba2"],
)
def test_a_config_is_counted_alike_before_and_after_transformers_saved_it(model_type: str) -> None:
    """transformers writes what it derived: fields of single layers, infinity, words for activations."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = {} if model_type == "dab-detr" else {"num_hidden_layers": 8}
    saved = json.loads(CONFIG_MAPPING[model_type](**fields).to_json_string(use_diff=False))
    assert "per_layer_config" in saved or model_type in ("dab-detr", "mamba2")
    before, after = weigh({"model_type": model_type} | fields), weigh(saved | {"model_type": model_type})
    assert before.total == after.total
    assert before.architecture.mixers == after.architecture.mixers


@pytest.mark.parametrize(
    ("model_type", "stated", "today"),
    [
        ("bert", ["TFBertForMaskedLM"], "BertForMaskedLM"),
        ("bert", ["FlaxBertModel"], "BertModel"),
        ("llama", ["LLaMAForCausalLM"], "LlamaForCausalLM"),
        ("bert", "BertModel", "BertModel"),
    ],
)
def test_classes_of_other_frameworks_and_old_spellings_are_todays(model_type: str, stated: Any, today: str) -> None:
    ledger = weigh({"model_type": model_type, "architectures": stated})
    assert ledger.total == weigh({"model_type": model_type, "architectures": [today]}).total
    assert any(f"counted as {today}" in note for note in ledger.notes) or stated == today


def test_a_field_of_single_layers_that_no_blueprint_asks_for_is_refused() -> None:
    from weighbridge.formats.blueprints import NotCovered, build

    with pytest.raises(NotCovered, match=r"per_layer_config\.hidden_size"):
        build({"per_layer_config": {"0": {"hidden_size": 4}}, "num_hidden_layers": 2}, model_type="llama")
    with pytest.raises(Malformed, match="per_layer_config is no object"):
        build({"per_layer_config": [1]}, model_type="llama")


def test_transformers_counts_what_no_blueprint_speaks_for() -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96,
              "num_attention_heads": 4, "vocab_size": 50, "architectures": ["LlamaForCausalLM"],
              "pretraining_tp": 1}  # fmt: skip
    found = configured.ledger_of({**config, "hidden_act": "silu"}, location="t", name="t")
    from weighbridge.formats import meta
    from weighbridge.formats.blueprints import NotCovered

    built = meta.build(config, why=NotCovered("a test"))
    assert sum(t.elements for t in found.tensors) == sum(_product(shape) for shape in built.tensors.values())
    assert dict(built.tensors) == {t.name: t.shape for t in found.tensors}


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def test_code_of_a_repository_is_never_run() -> None:
    config = {"model_type": "my_model", "architectures": ["MyModel"], "auto_map": {"AutoModel": "modeling.MyModel"}}
    with pytest.raises(Unknown, match="never run"):
        weigh(config)
    # ... nor is a class of transformers believed, where the config says that it means another by the name.
    with pytest.raises(WeighError):
        weigh({**config, "architectures": ["LlamaForCausalLM"]})


def test_a_class_of_another_type_than_the_config_states_is_refused() -> None:
    with pytest.raises(WeighError, match="architectures"):
        weigh({"model_type": "llama", "architectures": ["BertModel"]})


def test_an_empty_config_says_what_is_missing() -> None:
    with pytest.raises(NotFound, match="model_type"):
        weigh({})


def test_settings_must_be_fields() -> None:
    with pytest.raises(Refused, match="--set"):
        configured.with_settings({}, {"a b": 1})
    with pytest.raises(Refused, match="no object"):
        configured.with_settings({"hidden_size": 5}, {"hidden_size.x": 1})
    with pytest.raises(Unknown, match="llama"):
        configured.of_arch("lama")


@pytest.mark.parametrize(
    ("arch", "path", "meant"),
    [
        ("qwen3", "num_hiden_layers", "num_hidden_layers"),
        ("qwen3", "layers", "num_hidden_layers"),
        ("gpt2", "n_layers", "n_layer"),
        ("llava", "text_config.hiden_size", "hidden_size"),
        ("llava", "vision_tower", "vision"),
        ("llava", "text_confg.hidden_size", "text_config"),
    ],
)
def test_a_slip_in_the_name_of_a_set_field_is_refused_with_what_was_meant(arch: str, path: str, meant: str) -> None:
    with pytest.raises(Refused, match=f"--set {path}: .* no such field; did you mean .*{meant}"):
        weighbridge.show(arch=arch, settings={path: 3})


@pytest.mark.parametrize(
    ("arch", "path", "value"),
    [
        ("gpt2", "n_layer", 3),
        ("gpt2", "num_hidden_layers", 3),
        ("qwen3", "attention_dropout", 0.1),
        ("qwen3", "rope_theta", 5),
        ("qwen3", "num_labels", 7),
        ("qwen3", "torch_dtype", "float16"),
        ("llama", "rope_scaling.factor", 2.0),
        ("detr", "backbone", "resnet18"),
        ("qwen2_vl", "hidden_size", 1024),
    ],
)
def test_every_field_that_a_config_may_have_can_be_set(arch: str, path: str, value: Any) -> None:
    assert weighbridge.show(arch=arch, settings={path: value}).data["parameters"]["total"]


def test_a_field_that_the_config_states_can_be_set_whoever_reads_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "made_by": {"team": 1}}))
    assert weighbridge.show(tmp_path, settings={"made_by.team": 2}).data["parameters"]["total"]
    with pytest.raises(Refused, match="no such field"):
        weighbridge.show(tmp_path, settings={"made_at": 2})


# The language --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in library.FOLDER.glob("*.blueprint")))
def test_every_file_parses_and_names_only_parts_that_exist(name: str) -> None:
    text = (library.FOLDER / f"{name}.blueprint").read_text()
    blueprint = parse(text, name)
    assert text.startswith("#"), "a line on what distinguishes the family"
    family = library.Family(blueprint)

    def check(statements: tuple[Any, ...]) -> None:
        for statement in statements:
            for expression in (*statement.expressions, *([statement.when] if statement.when else [])):
                assert callable(expression.compute)
            if statement.call is not None and statement.kind not in ("attends", "routes"):
                called = statement.call.part
                # Files without a type are pieces: what uses them may bring the part.
                assert called == "auto" or family.part(called) or not blueprint.types, (name, statement.line, called)
            check(statement.body)
            check(statement.otherwise)

    for part in blueprint.parts.values():
        check(part.body)
    for kind in blueprint.types.values():
        check(kind.body)


@pytest.mark.parametrize(
    "text", ["part A:\n    x = 3", "nonsense", "part A(:\n    w: [1]", "part A:\n    w: [1", "type x:"]
)
def test_a_mistake_in_a_blueprint_names_its_line(text: str) -> None:
    with pytest.raises(Mistake, match=r"test:\d"):
        parse(text, "test")


def test_no_type_is_in_two_files() -> None:
    seen: dict[str, str] = {}
    for path in library.FOLDER.glob("*.blueprint"):
        for name in parse(path.read_text(), path.stem).types:
            assert name not in seen, f"{name} is in {seen.get(name)} and {path.stem}"
            seen[name] = path.stem


def test_facts_are_of_known_kinds() -> None:
    from weighbridge.ledger.architecture import MIXERS

    for name in REAL:
        config = REAL[name]["config"]
        built = blueprints.build(
            config, model_type=configured._asked(config)[0] or "", class_name=configured._asked(config)[1]
        )
        assert {mixer.kind for mixer in mixers_of(built)} <= set(MIXERS)
        routers_of(built)

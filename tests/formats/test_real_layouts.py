"""Header-only folders laid out like real repositories: real configs, real names, published totals."""

import json
import re
from functools import lru_cache
from math import ceil, prod
from pathlib import Path

import layouts
import pytest
import torch
import transformers as tf

from weighbridge.formats.models import open_model
from weighbridge.ledger.show import show

MODELS = {m["name"]: m for m in json.loads((Path(__file__).parents[1] / "data/real_models.json").read_text())["models"]}
_ROLE = {"routed_experts": "expert", "shared_expert": "ffn", "lm_head": "head", "pos_embedding": "embedding"}
_ROLE |= {"ssm_linear_attn": "ssm", "vision_audio": "vision"}


@lru_cache(maxsize=2)
def _built(name: str) -> tuple[layouts.Layout, layouts.Layout]:
    """(parameters, stored buffers) of the class that transformers builds from the config, on the meta device."""
    truth = MODELS[name]
    model_class = getattr(tf, truth["class"])
    config = {k: v for k, v in truth["config"].items() if k != "quantization_config"}
    with torch.device("meta"):
        model = model_class._from_config(model_class.config_class.from_dict(config))
    kept = model.state_dict().keys()
    parameters = {n: ("BF16", tuple(p.shape)) for n, p in model.named_parameters()}
    return parameters, {n: ("F32", tuple(b.shape)) for n, b in model.named_buffers() if n in kept}


def _apart(parameters: layouts.Layout) -> layouts.Layout:
    """Experts one by one, as repositories store them; transformers 5 holds them stacked."""
    found: layouts.Layout = {}
    for name, (dtype, shape) in parameters.items():
        stacked = re.fullmatch(r"(.*\.experts)\.(gate_up_proj|down_proj)", name)
        if not stacked:
            found[name] = (dtype, shape)
            continue
        count, out, into = shape
        parts = {"gate_proj": out // 2, "up_proj": out // 2} if stacked[2] == "gate_up_proj" else {"down_proj": out}
        for expert in range(count):
            for part, width in parts.items():
                found[f"{stacked[1]}.{expert}.{part}.weight"] = (dtype, (width, into))
    return found


def _fp8(layout: layouts.Layout, linear: str) -> layouts.Layout:
    """FP8 in blocks of 128 x 128 for the layers whose name matches."""
    found: layouts.Layout = {}
    for name, (dtype, shape) in layout.items():
        if re.search(linear, name) and len(shape) == 2:
            found[name] = ("F8_E4M3", shape)
            found[f"{name}_scale_inv"] = ("F32", (ceil(shape[0] / 128), ceil(shape[1] / 128)))
        else:
            found[name] = (dtype, shape)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_real_model_has_its_published_counts(name: str, tmp_path: Path) -> None:
    truth = MODELS[name]
    parameters, buffers = _built(name)
    ledger = open_model(str(layouts.write_folder(tmp_path, parameters | buffers, config=truth["config"])))
    assert ledger.total == truth["total"]
    assert ledger.buffers == truth["persistent_buffers"]
    assert ledger.biases == truth["biases"]
    assert ledger.active == (truth["active"] or truth["total"])
    if truth["active"]:
        assert ledger.experts == truth["experts"]
        assert ledger.active_excluding_input_embedding == truth["active_excluding_input_embedding"]
    roles: dict[str, int] = {}
    for component, count in truth["roles"].items():
        role = _ROLE.get(component, component)
        roles[role] = roles.get(role, 0) + count
    assert ledger.by_role() == roles


def _deepseek_v32() -> layouts.Layout:
    """V3 with a lightning indexer in every layer, the MTP layer's included; two of its four matrices in FP8."""
    config = MODELS["deepseek-ai/DeepSeek-V3.2"]["config"]
    layout = layouts.deepseek(config)
    heads, width, hidden = config["index_n_heads"], config["index_head_dim"], config["hidden_size"]
    for layer in range(config["num_hidden_layers"] + 1):
        at = f"model.layers.{layer}.self_attn.indexer."
        linear: layouts.Layout = {
            f"{at}wq_b.weight": ("BF16", (heads * width, config["q_lora_rank"])),
            f"{at}wk.weight": ("BF16", (width, hidden)),
        }
        layout |= _fp8(linear, "weight")
        layout |= {f"{at}k_norm.{leaf}": ("F32", (width,)) for leaf in ("weight", "bias")}
        layout[f"{at}weights_proj.weight"] = ("BF16", (heads, hidden))
    return layout


def _stored(name: str) -> layouts.Layout:
    """What the repository of that name stores."""
    config = MODELS[name]["config"]
    if name == "deepseek-ai/DeepSeek-V3.2":
        return _deepseek_v32()
    if name == "deepseek-ai/DeepSeek-V3":
        return layouts.deepseek(config)
    parameters, buffers = _built(name)
    layout = _apart(parameters) | buffers
    if name == "openai-community/gpt2":
        layout = {n.removeprefix("transformer."): entry for n, entry in layout.items()}
        return layout | {f"h.{i}.attn.bias": ("F32", (1, 1, 1024, 1024)) for i in range(12)}
    if name == "EleutherAI/pythia-410m":
        for i in range(24):
            layout[f"gpt_neox.layers.{i}.attention.bias"] = ("BOOL", (1, 1, 2048, 2048))
            layout[f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"] = ("F32", (8,))
        return layout
    if name == "meta-llama/Llama-2-7b-hf":
        return layout | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": ("F32", (64,)) for i in range(32)}
    if name == "MiniMaxAI/MiniMax-M2.5":
        return _fp8(layout, r"self_attn\..*_proj|\.experts\.")
    if name == "Qwen/Qwen3-0.6B":
        return layout | {"lm_head.weight": ("BF16", (151936, 1024))}
    if name == "google/gemma-4-26B-A4B":
        return _apart(parameters) | {"lm_head.weight": parameters["model.language_model.embed_tokens.weight"]}
    raise KeyError(name)


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        (
            "deepseek-ai/DeepSeek-V3",
            {"mtp_copies": 1_853_358_080, "mtp_layers": 11_610_068_224, "quantization_scales": 41_540_496},
        ),
        (
            "deepseek-ai/DeepSeek-V3.2",
            {
                "mtp_copies": 1_853_358_080,
                "mtp_layers": 11_610_068_224 + 13_959_424,
                "quantization_scales": 41_540_496 + 62 * 824,
            },
        ),
        ("MiniMaxAI/MiniMax-M2.5", {"quantization_scales": 13_880_064}),
        ("Qwen/Qwen3-0.6B", {"tied_copies": 155_582_464}),
        ("google/gemma-4-26B-A4B", {"tied_copies": 738_197_504}),
        ("openai-community/gpt2", {}),
        ("EleutherAI/pythia-410m", {}),
        ("meta-llama/Llama-2-7b-hf", {}),
    ],
)
def test_the_hubs_own_total_is_explained_to_the_element(name: str, extras: dict[str, int], tmp_path: Path) -> None:
    truth = MODELS[name]
    layout = _stored(name)
    assert sum(prod(shape) for _, shape in layout.values()) == truth["hub_total"]
    ledger = open_model(str(layouts.write_folder(tmp_path, layout, config=truth["config"], shards=3)))
    assert ledger.total == truth["total"]
    assert ledger.extras == extras
    assert ledger.total + ledger.buffers + sum(ledger.extras.values()) == truth["hub_total"]
    said = show(ledger).to_dict()
    assert said["parameters"]["total"] + said["buffers"]["total"] + said["extras"]["total"] == truth["hub_total"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("layers", "width", "heads", "total", "hub_total"),
    [
        (24, 1024, 16, 354_823_168, 379_988_992),
        (36, 1280, 20, 774_030_080, 811_778_816),
        (48, 1600, 25, 1_557_611_200, 1_607_942_848),
    ],
)
def test_the_larger_gpt2s_differ_from_the_hubs_total_by_their_masks(
    layers: int, width: int, heads: int, total: int, hub_total: int, tmp_path: Path
) -> None:
    config = {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": heads}
    with torch.device("meta"):
        model = tf.GPT2Model._from_config(tf.GPT2Config(**config))
    layout: layouts.Layout = {name: ("F32", tuple(p.shape)) for name, p in model.named_parameters()}
    layout |= {f"h.{layer}.attn.bias": ("F32", (1, 1, 1024, 1024)) for layer in range(layers)}
    ledger = open_model(str(layouts.write_folder(tmp_path, layout, config=config)))
    assert (ledger.total, ledger.total + ledger.buffers) == (total, hub_total)


def test_of_kimi_k2s_hub_total_56_elements_a_layer_are_left(tmp_path: Path) -> None:
    truth = MODELS["moonshotai/Kimi-K2-Instruct"]
    layout = layouts.deepseek(truth["config"], mtp=False)
    ledger = open_model(str(layouts.write_folder(tmp_path, layout, config=truth["config"], shards=61)))
    assert (ledger.total, ledger.buffers) == (truth["total"], truth["persistent_buffers"])
    assert ledger.extras == {"quantization_scales": 62_495_192}
    assert truth["hub_total"] - ledger.total - ledger.buffers - 62_495_192 == 56 * 61


def test_experts_stored_one_by_one_are_the_experts_stored_stacked(tmp_path: Path) -> None:
    name = "Qwen/Qwen3-30B-A3B-FP8"
    truth = MODELS[name]
    parameters, _ = _built(name)
    apart = _fp8(_apart(parameters), r"self_attn\..*_proj|\.experts\.")
    ledger = open_model(str(layouts.write_folder(tmp_path, apart, config=truth["config"], shards=7)))
    assert (ledger.total, ledger.active) == (truth["total"], truth["active"])
    # The hub's own row for the 2507 FP8 checkpoints of this architecture, which its maintainers stored this way.
    assert ledger.total + sum(ledger.extras.values()) == 30_533_947_392
    assert len({t.expert for t in ledger.tensors if t.role == "expert"}) == 128


def test_the_report_names_every_extra(tmp_path: Path) -> None:
    layout = _stored("deepseek-ai/DeepSeek-V3")
    config = MODELS["deepseek-ai/DeepSeek-V3"]["config"]
    text = str(show(open_model(str(layouts.write_folder(tmp_path, layout, config=config)))))
    for part in ("671,026,404,352 parameters", "14,848 buffers", "mtp copies", "= 684,531,386,000 elements"):
        assert part in text

"""Python objects, weighed by what their own libraries count."""

import subprocess
import sys
from typing import Any

import bitsandbytes
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers as tf
from torch import nn

import weighbridge
from weighbridge.ledger.errors import Unknown, WeighError


def shown(thing: object) -> dict[str, Any]:
    return weighbridge.show(thing).to_dict()


def llama(**fields: Any) -> tf.LlamaForCausalLM:
    config = tf.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=60,
        **fields,
    )
    return tf.LlamaForCausalLM(config)


def test_a_module_has_the_parameters_and_buffers_that_torch_counts() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2), nn.LSTM(4, 5))
    net.register_buffer("unsaved", torch.zeros(7), persistent=False)
    said = shown(net)
    assert said["parameters"]["total"] == sum(p.numel() for p in net.parameters())
    assert said["buffers"]["total"] == sum(b.numel() for b in net.buffers())
    assert any("7 elements" in note and "persistent=False" in note for note in said["notes"])
    roles = said["parameters"]["by_role"]
    assert roles["conv"] == 3 * 8 * 9 + 8
    assert roles["norm"] == 16
    assert roles["ffn"] == 18
    assert roles["ssm"] == sum(p.numel() for p in net[4].parameters())


def test_what_is_frozen_is_not_trainable_and_one_line_says_so() -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 2))
    net[0].requires_grad_(False)
    report = weighbridge.show(net)
    assert report.to_dict()["parameters"]["trainable"] == 22  # type: ignore[index]
    assert report.summary == "132 parameters, 22 trainable (16.67%)"


def test_a_class_freezes_some_of_its_tensors_and_its_owner_may_thaw_them() -> None:
    model = tiny.build("whisper")
    frozen = model.get_encoder().embed_positions.weight.numel()
    assert frozen
    assert shown(model)["parameters"]["trainable"] == tiny.counted(model) - frozen
    assert shown(model.config)["parameters"]["trainable"] == tiny.counted(model) - frozen
    model.requires_grad_(True)
    assert shown(model)["parameters"]["trainable"] == tiny.counted(model)


def test_tied_weights_count_once() -> None:
    tied, apart = llama(tie_word_embeddings=True), llama(tie_word_embeddings=False)
    assert shown(tied)["parameters"]["total"] == tied.num_parameters() == apart.num_parameters() - 60 * 32
    assert shown(tied)["ties"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert shown(tied.state_dict())["parameters"]["total"] == tied.num_parameters()
    shared = nn.Linear(3, 3)
    assert shown(nn.Sequential(shared, nn.ReLU(), shared))["parameters"]["total"] == 12


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "v_proj", "down_proj"], "all-linear"])
@pytest.mark.parametrize("rank", [1, 8])
def test_an_adapter_is_what_peft_would_train(targets: Any, rank: int) -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=rank, target_modules=targets))
    trainable, total = model.get_nb_trainable_parameters()
    said = shown(model)
    assert (said["parameters"]["trainable"], said["parameters"]["total"]) == (trainable, total)
    assert said["parameters"]["by_role"]["adapter"] == trainable


def test_a_module_on_the_meta_device_counts_like_a_real_one() -> None:
    with torch.device("meta"):
        empty = llama()
    assert shown(empty)["parameters"] == shown(llama())["parameters"]


def test_packed_weights_count_unpacked() -> None:
    import bitsandbytes as bnb

    layer = nn.Sequential(bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4"))
    layer.load_state_dict({"0.weight": torch.randn(32, 64)})
    layer = layer.to("cpu")
    said = shown(layer)
    assert said["parameters"]["total"] == 64 * 32
    assert said["parameters"]["trainable"] == 0
    eight = nn.Sequential(bnb.nn.Linear8bitLt(64, 32, bias=True, has_fp16_weights=False))
    assert shown(eight)["parameters"]["total"] == 64 * 32 + 32


@pytest.mark.parametrize("scheme", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig", "IntxWeightOnlyConfig"])
def test_torchaos_weights_count_once_and_weigh_what_they_are_stored_in(scheme: str) -> None:
    from torchao import quantization

    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 32, bias=False)).to(torch.bfloat16)
    counted = sum(p.numel() for p in model.parameters())
    quantization.quantize_(model, getattr(quantization, scheme)())
    parts = [getattr(layer.weight, part) for layer in model for part in layer.weight.__tensor_flatten__()[0]] + [
        model[0].bias
    ]
    stored = sum(part.numel() * part.element_size() for part in parts)
    for said in (weighbridge.show(model).data, weighbridge.show(model.state_dict()).data):
        assert said["parameters"]["total"] == counted
        assert said["bytes"] == stored
        assert said["parameters"]["total"] + said["extras"]["total"] == sum(part.numel() for part in parts)


def test_prompts_that_peft_learns_are_an_adapter() -> None:
    base = tiny.build("llama")
    learned = peft.get_peft_model(base, peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=8))
    said = weighbridge.show(learned).data["parameters"]
    trained = sum(p.numel() for p in learned.parameters() if p.requires_grad)
    assert said["by_role"]["adapter"] == said["trainable"] == trained > 0


def test_int8_weights_of_bitsandbytes_count_once_each() -> None:
    layer = bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(
        torch.ones(32, 64, dtype=torch.int8), requires_grad=False, SCB=torch.ones(32)
    )
    said = shown(nn.Sequential(layer))
    assert said["parameters"]["total"] == 32 * 64 + 32
    assert said["extras"]["by_name"] == {"quantization_scales": 32}


def test_a_parameter_of_whole_numbers_is_one() -> None:
    net = nn.Linear(4, 3)
    net.register_parameter("places", nn.Parameter(torch.zeros(7, dtype=torch.int64), requires_grad=False))
    said = shown(net)["parameters"]
    assert (said["total"], said["trainable"]) == (22, 15)


def test_a_nested_tensor_is_refused_in_one_line() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(Unknown, match="nested tensor"):
        weighbridge.show({"weight": nested, "bias": torch.ones(3)})


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.leave(self.head(self.conv(self.enter(image)).mean((2, 3))))


@pytest.mark.filterwarnings("ignore")
def test_layers_that_torch_ao_quantized_count_as_what_they_stand_for() -> None:
    plain = nn.Sequential(nn.Linear(4, 8), nn.LSTM(8, 5), nn.Embedding(10, 4))
    counted = sum(p.numel() for p in plain.parameters())
    dynamic = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear, nn.LSTM})
    assert shown(dynamic)["parameters"]["total"] == counted
    assert shown(dynamic)["parameters"]["trainable"] == 40  # the embedding
    with pytest.raises(Unknown, match="show the module itself"):
        weighbridge.show(dynamic.state_dict())
    net = Convolved().eval()
    counted = sum(p.numel() for p in net.parameters())
    net.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    ready = torch.ao.quantization.prepare(net)
    ready(torch.ones(1, 3, 8, 8))
    static = torch.ao.quantization.convert(ready)
    assert shown(static)["parameters"]["total"] == counted


@pytest.mark.filterwarnings("ignore")
def test_scripted_traced_and_exported_modules_count_like_what_they_came_from() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, shared, nn.BatchNorm1d(4)).eval()
    batch = (torch.ones(2, 4),)
    for thing in (torch.jit.script(net), torch.jit.trace(net, batch), torch.export.export(net, batch)):
        said = shown(thing)
        assert (said["parameters"]["total"], said["buffers"]["total"]) == (28, 9)


def test_what_a_training_script_saves_is_the_model_and_its_optimizers_state() -> None:
    net = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    said = shown({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3})
    assert said["parameters"]["total"] == 15
    assert said["extras"]["by_name"] == {"optimizer_state": 2 * 15 + 2}
    assert shown(list(net.parameters()))["parameters"]["total"] == 15


def test_a_state_dict_is_judged_as_a_checkpoint_is() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    said = shown(net.state_dict())
    assert said["parameters"]["total"] == sum(p.numel() for p in net.parameters())
    assert said["buffers"]["total"] == 9
    half = {name: tensor.to(torch.bfloat16) for name, tensor in llama().state_dict().items()}
    assert list(shown(half)["parameters"]["by_dtype"]) == ["BF16"]


def test_a_lazy_layer_says_that_it_has_no_shape() -> None:
    with pytest.raises(Unknown, match="no shape yet"):
        weighbridge.show(nn.LazyLinear(3))


def test_a_config_object_is_the_model_that_it_describes() -> None:
    model = llama(tie_word_embeddings=True)
    for config in (model.config, model.config.to_dict()):
        said = shown(config)
        assert said["parameters"]["total"] == model.num_parameters()
        assert said["built"]["by"] == "the blueprint of llama"


def test_the_architecture_of_a_transformers_model_is_known() -> None:
    architecture = shown(llama())["architecture"]
    assert (architecture["layers"], architecture["heads"], architecture["kv_heads"]) == (2, 4, 2)
    assert [m["kind"] for m in architecture["mixers"]] == ["full", "full"]


def test_plain_pytrees_of_arrays_are_weighed() -> None:
    tree = {
        "params": {
            "Dense_0": {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4, np.float32)},
            "Conv_0": {"kernel": np.zeros((3, 3, 4, 8), np.float32)},
            "LayerNorm_0": {"scale": np.zeros(4, np.float32)},
            "Embed_0": {"embedding": np.zeros((10, 4), np.float16)},
        },
        "batch_stats": {"BatchNorm_0": {"mean": np.zeros(5, np.float32)}},
        "step": np.int32(3),
    }
    said = shown(tree)
    assert said["parameters"]["total"] == 12 + 4 + 288 + 4 + 40
    assert said["parameters"]["by_role"] == {"embedding": 40, "ffn": 16, "norm": 4, "conv": 288}
    assert said["buffers"]["total"] == 5
    assert said["extras"]["by_name"] == {"optimizer_state": 1}


@pytest.mark.parametrize("thing", [3, object(), [], {}, {"a": "b"}, print])
def test_what_is_no_model_is_refused_in_one_line(thing: object) -> None:
    with pytest.raises(WeighError) as caught:
        weighbridge.show(thing)
    assert "\n" not in str(caught.value)


def test_nothing_is_imported_for_an_object() -> None:
    code = (
        "import sys, weighbridge\n"
        "class Array:\n    shape = (2, 3)\n    dtype = 'float32'\n"
        "assert weighbridge.show({'w': Array()}).to_dict()['parameters']['total'] == 6\n"
        "heavy = {'torch', 'jax', 'keras', 'sklearn', 'numpy', 'transformers'}\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_imports_no_third_party() -> None:
    code = (
        "import sys; before = set(sys.modules)\nimport weighbridge\n"
        "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['weighbridge']"


def test_in_a_notebook_it_draws_itself() -> None:
    html = weighbridge.show(nn.Linear(2, 2))._repr_html_()
    assert html.startswith("<div")
    assert "trainable" in html

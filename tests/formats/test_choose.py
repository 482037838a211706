"""Which files are the model, over listings as repositories have them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.formats.candidates import candidates
from weighbridge.formats.choose import Choice, choose
from weighbridge.ledger.errors import Ambiguous, NotFound, WeighError

MB, GB = 10**6, 10**9


def _shards(stem: str, count: int, ending: str = "safetensors") -> dict[str, int]:
    return {f"{stem}-{n:05d}-of-{count:05d}.{ending}": 4 * GB for n in range(1, count + 1)}


def _choose(*names: str, sizes: dict[str, int] | None = None, **how: str) -> Choice:
    return choose({**dict.fromkeys(names, MB), **(sizes or {})}, where="org/name", **how)  # type: ignore[arg-type]


INDEX = "model.safetensors.index.json"
BESIDE = ("config.json", "README.md", "tokenizer.json", "training_args.bin", "optimizer.pt", "rng_state.pth")


def test_one_safetensors_file_is_the_model() -> None:
    assert _choose("model.safetensors", *BESIDE) == Choice(
        kind="safetensors", files=("model.safetensors",), index=None, label=None
    )


def test_shards_with_their_index_are_the_model() -> None:
    choice = _choose(INDEX, *BESIDE, sizes=_shards("model", 3))
    assert choice.kind == "safetensors"
    assert choice.files == tuple(_shards("model", 3))
    assert choice.index == INDEX


def test_shards_without_an_index_are_one_model() -> None:
    choice = _choose(*BESIDE, sizes=_shards("model", 2))
    assert (choice.files, choice.index) == (tuple(_shards("model", 2)), None)


@pytest.mark.parametrize(
    "names",
    [
        ["model-1-of-3.safetensors", "model-2-of-3.safetensors", "model-3-of-3.safetensors"],  # Kimi K2
        ["model-00001-of-000003.safetensors", "model-00002-of-000003.safetensors", "model-00003-of-000003.safetensors"],
        [f"model.safetensors-0000{n}-of-00003.safetensors" for n in (1, 2, 3)],  # Qwen3.5
        [f"model-0000{n}-of-00003.safetensors" for n in (0, 1, 2)],
        [f"model.fp16-0000{n}-of-00003.safetensors" for n in (1, 2, 3)],
    ],
)
def test_shards_are_numbered_in_several_ways(names: list[str]) -> None:
    choice = _choose(*names, INDEX, "model.safetensors.index.fp16.json", *BESIDE)
    assert choice.files == tuple(names)
    assert choice.index is not None


def test_shards_are_put_in_the_order_of_their_numbers() -> None:
    names = [f"model-{n}-of-11.safetensors" for n in range(1, 12)]
    assert _choose(*reversed(names)).files == tuple(names)


def test_missing_shards_are_named() -> None:
    sizes = _shards("model", 6)
    del sizes["model-00002-of-00006.safetensors"], sizes["model-00005-of-00006.safetensors"]
    with pytest.raises(NotFound, match=r"has 4 of 6 shards.*model-00002-of-00006\.safetensors, model-00005-of-00006"):
        _choose(INDEX, sizes=sizes)


def test_of_many_missing_shards_some_are_named_and_the_rest_counted() -> None:
    with pytest.raises(NotFound, match=r"has 1 of 999999 shards.*model-000002-of-999999.* and 999993 more"):
        _choose("model-000001-of-999999.safetensors")


def test_an_index_without_its_shards_is_said_to_be_that() -> None:
    with pytest.raises(NotFound, match="none of the shards it lists"):
        _choose(INDEX, "config.json")


def test_what_makers_keep_beside_their_weights_is_left_aside() -> None:
    beside = ("original/consolidated.00.pth", "consolidated.safetensors", "onnx/model.onnx", "pytorch_model.bin")
    assert _choose(INDEX, *beside, sizes=_shards("model", 2)).files == tuple(_shards("model", 2))
    assert _choose("model.safetensors", *beside).files == ("model.safetensors",)


def test_consolidated_alone_is_the_model() -> None:
    assert _choose("consolidated.safetensors", "params.json").files == ("consolidated.safetensors",)


def test_original_counts_where_there_is_nothing_else() -> None:
    assert _choose("original/model.safetensors").files == ("original/model.safetensors",)
    assert _choose("original/model.safetensors", "new/model.safetensors").files == ("new/model.safetensors",)


def test_precision_variants_wait_to_be_asked_for() -> None:
    names = ("model.safetensors", "model.fp16.safetensors")
    assert _choose(*names).files == ("model.safetensors",)
    assert _choose(*names, selector="fp16").files == ("model.fp16.safetensors",)
    assert _choose("model.fp16.safetensors").files == ("model.fp16.safetensors",)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_told_by_its_config(name: str) -> None:
    assert _choose(name, "adapter_config.json", *BESIDE).kind == "adapter"
    assert _choose(name, *BESIDE).kind != "adapter"


def test_an_adapter_in_both_formats_is_read_from_safetensors() -> None:
    choice = _choose("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")
    assert (choice.kind, choice.files) == ("adapter", ("adapter_model.safetensors",))


def test_pytorch_files_are_the_last_resort() -> None:
    sizes = _shards("pytorch_model", 2, "bin")
    choice = _choose("pytorch_model.bin.index.json", "flax_model.msgpack", "model.pt", *BESIDE, sizes=sizes)
    assert choice == Choice(kind="torch", files=tuple(sizes), index="pytorch_model.bin.index.json", label=None)
    assert _choose("model.safetensors", "pytorch_model.bin").kind == "safetensors"
    assert _choose("consolidated.00.pth", "params.json").files == ("consolidated.00.pth",)


NO_WEIGHTS = """
    training_args.bin optimizer.pt optimizer.bin scheduler.pt scheduler.bin rng_state.pth rng_state_0.pth scaler.pt
    random_states_0.pkl optimizer_0.pt tokenizer.bin vocab.bin ggml-model-q4_0.bin openvino_model.bin
    imatrix.gguf Model.imatrix.gguf bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt ggml-vocab-llama.gguf
    optimizer.safetensors tf_model.ckpt.index
"""


@pytest.mark.parametrize("name", NO_WEIGHTS.split())
def test_what_is_no_weights_is_never_picked(name: str) -> None:
    with pytest.raises(NotFound, match="no weights in org/name"):
        _choose(name)
    assert _choose(name, "model.pt").files == ("model.pt",)


@pytest.mark.parametrize("name", ["optimus-7b.safetensors", "scalers.safetensors", "vocabulary-model.bin"])
def test_a_name_that_only_begins_like_no_weights_is_weights(name: str) -> None:
    assert _choose(name).files == (name,)


def test_no_weights_says_which_files_are_there() -> None:
    with pytest.raises(NotFound, match=r"it has README.md, config.json, tf_model.ckpt.index; .*--file"):
        _choose("tf_model.ckpt.index", "config.json", "README.md")
    with pytest.raises(NotFound, match="is empty"):
        _choose()


# Two models


def test_two_unrelated_files_are_ambiguous() -> None:
    with pytest.raises(Ambiguous, match=r"holds 2 models: ae\.safetensors \(1\.00 MB\), flux1-dev.*--file ae\.safet"):
        _choose("flux1-dev.safetensors", "ae.safetensors")


def test_a_model_beside_another_set_is_ambiguous() -> None:
    with pytest.raises(Ambiguous, match=r"a\.safetensors.*b\.safetensors.*model\.safetensors"):
        _choose("model.safetensors", "a.safetensors", "b.safetensors")
    with pytest.raises(Ambiguous):
        _choose(INDEX, "a.safetensors", "b.safetensors", sizes=_shards("model", 2))


def test_what_the_index_lists_belongs_to_the_model() -> None:
    shards = _shards("model", 2)
    files = {**shards, "mtp.safetensors": GB, INDEX: 1000}
    choice = choose(files, where="org/name", indexed=lambda name: {*shards, "mtp.safetensors"})
    assert choice == Choice(kind="safetensors", files=(*sorted(shards), "mtp.safetensors"), index=INDEX, label=None)


def test_what_the_index_does_not_list_is_another_model() -> None:
    shards = _shards("model", 2)
    with pytest.raises(Ambiguous, match=r"holds 2 models.*other\.safetensors"):
        choose({**shards, "other.safetensors": GB, INDEX: 1000}, where="org/name", indexed=lambda name: set(shards))


def test_what_the_index_lists_and_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match=r"lacks c\.safetensors, which model\.safetensors\.index\.json lists"):
        choose(
            {"a.safetensors": 1, "b.safetensors": 1, INDEX: 1},
            where="org/name",
            indexed=lambda name: {"a.safetensors", "b.safetensors", "c.safetensors"},
        )


def test_the_index_is_not_opened_when_names_tell() -> None:
    def refuse(name: str) -> set[str]:
        raise AssertionError(name)

    choose({**_shards("model", 2), INDEX: 1, "config.json": 1}, where="org/name", indexed=refuse)


def test_shards_without_numbers_belong_to_the_index() -> None:
    choice = _choose("part_a.safetensors", "part_b.safetensors", INDEX)
    assert (choice.files, choice.index) == (("part_a.safetensors", "part_b.safetensors"), INDEX)


def test_one_file_and_its_shards_of_the_same_size_are_one_model() -> None:
    sizes = {**_shards("model", 2), "model.safetensors": 8 * GB - 1000}
    assert _choose(INDEX, sizes=sizes).files == ("model.safetensors",)


def test_one_file_and_shards_of_another_size_are_two_models() -> None:
    with pytest.raises(Ambiguous):
        _choose(INDEX, sizes={**_shards("model", 2), "model.safetensors": 3 * GB})


def test_leftover_shards_beside_a_whole_model_are_ignored() -> None:
    assert _choose("model.safetensors", "model-00001-of-00003.safetensors").files == ("model.safetensors",)


def test_a_full_model_and_an_adapter_in_one_folder_are_ambiguous() -> None:
    with pytest.raises(Ambiguous):
        _choose("model.safetensors", "adapter_model.safetensors", "adapter_config.json")


def test_the_top_folder_comes_before_subfolders() -> None:
    names = ("pytorch_model.bin", "checkpoint-500/model.safetensors", "2_Dense/model.safetensors")
    assert _choose(*names).files == ("pytorch_model.bin",)
    assert _choose(*names, selector="checkpoint-500").files == ("checkpoint-500/model.safetensors",)


def test_several_parts_of_a_pipeline_are_listed() -> None:
    with pytest.raises(Ambiguous, match=r"unet/diffusion_pytorch_model\.safetensors"):
        _choose(
            "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "model_index.json"
        )


# By file


def test_a_file_is_taken_by_its_name() -> None:
    names = ("flux1-dev.safetensors", "vae/ae.safetensors")
    assert _choose(*names, file="flux1-dev.safetensors").files == ("flux1-dev.safetensors",)
    assert _choose(*names, file="./vae/ae.safetensors").files == ("vae/ae.safetensors",)
    assert _choose(*names, file="ae.safetensors").files == ("vae/ae.safetensors",)


def test_a_shard_named_is_that_shard_and_an_index_named_is_all() -> None:
    sizes = _shards("model", 2)
    one = _choose(INDEX, sizes=sizes, file="model-00002-of-00002.safetensors")
    assert (one.files, one.index) == (("model-00002-of-00002.safetensors",), None)
    assert _choose(INDEX, sizes=sizes, file=INDEX).files == tuple(sizes)


def test_any_part_of_a_split_gguf_stands_for_all() -> None:
    sizes = _shards("m-Q8_0", 3, "gguf")
    choice = _choose(sizes=sizes, file="m-Q8_0-00001-of-00003.gguf")
    assert (choice.kind, choice.files, choice.label) == ("gguf", tuple(sizes), "Q8_0")


def test_a_file_of_another_format_is_taken_when_named() -> None:
    assert _choose("model.safetensors", "model.onnx", file="model.onnx").kind == "onnx"
    assert _choose("optimizer.pt", file="optimizer.pt").kind == "torch"
    assert _choose("weights", file="weights").kind == "file"


def test_an_unknown_file_is_answered_with_near_ones() -> None:
    with pytest.raises(NotFound, match=r"no model\.safetensor in org/name; it has model\.safetensors"):
        _choose("model.safetensors", file="model.safetensor")


# GGUF


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("llama-2-7b.q4_0.gguf", "Q4_0"),
        ("qwen2.5-7b-instruct-q5_k_m.gguf", "Q5_K_M"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-oss-120b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("DeepSeek-R1-UD-IQ1_S.gguf", "UD-IQ1_S"),
        ("Model.i1-IQ2_XXS.gguf", "IQ2_XXS"),
        ("model-IQ4_NL.gguf", "IQ4_NL"),
        ("model-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("model-TQ1_0.gguf", "TQ1_0"),
        ("model-Q2_K.gguf", "Q2_K"),
        ("model-Q6_K_L.gguf", "Q6_K_L"),
        ("model-bf16.gguf", "BF16"),
        ("model.fp16.gguf", "FP16"),
        ("model-F32.gguf", "F32"),
        ("ggml-model-q8_0.gguf", "Q8_0"),
        ("Q4_K_M/model.gguf", "Q4_K_M"),
        ("tinyllama.gguf", None),
        ("seq4_kernel.gguf", None),
    ],
)
def test_a_gguf_tells_its_quantization_by_its_name(name: str, label: str | None) -> None:
    assert _choose(name) == Choice(kind="gguf", files=(name,), index=None, label=label)


UNSLOTH = {
    "model-Q4_K_M.gguf": 5 * GB,
    "model-Q8_0.gguf": 9 * GB,
    "model-UD-Q4_K_XL.gguf": 6 * GB,
    **{f"BF16/{name}": size for name, size in _shards("model-BF16", 2, "gguf").items()},
    "mmproj-F16.gguf": GB,
    "mmproj-BF16.gguf": GB,
    "imatrix_unsloth.gguf": MB,
    "config.json": 1000,
}


def test_several_quantizations_are_listed_with_their_sizes() -> None:
    with pytest.raises(Ambiguous) as caught:
        _choose(sizes=UNSLOTH)
    assert str(caught.value) == (
        "org/name holds 4 models: Q4_K_M (5.00 GB), UD-Q4_K_XL (6.00 GB), BF16 (8.00 GB), Q8_0 (9.00 GB);"
        " choose one: org/name::Q4_K_M"
    )


@pytest.mark.parametrize("selector", ["BF16", "bf16", "BF16/model-BF16", "model-BF16-00002-of-00002.gguf"])
def test_a_quantization_is_chosen_in_any_case_and_with_all_its_parts(selector: str) -> None:
    choice = _choose(sizes=UNSLOTH, selector=selector)
    assert choice.files == tuple(f"BF16/{name}" for name in _shards("model-BF16", 2, "gguf"))


def test_a_quantization_may_leave_out_the_makers_prefix() -> None:
    assert _choose(sizes=UNSLOTH, selector="q4_k_xl").label == "UD-Q4_K_XL"
    both = {"m-Q4_K_XL.gguf": 1, "m-UD-Q4_K_XL.gguf": 1}
    assert _choose(sizes=both, selector="q4_k_xl").label == "Q4_K_XL"


def test_projectors_are_kept_apart_but_can_be_named() -> None:
    assert _choose("model-Q8_0.gguf", "mmproj-model-f16.gguf").files == ("model-Q8_0.gguf",)
    assert _choose(sizes=UNSLOTH, selector="mmproj-F16").files == ("mmproj-F16.gguf",)
    assert _choose(sizes=UNSLOTH, file="mmproj-BF16.gguf").files == ("mmproj-BF16.gguf",)
    assert {one.stem for one in candidates(UNSLOTH) if one.apart} == {"mmproj-F16", "mmproj-BF16"}


def test_an_unknown_quantization_is_answered_with_those_there() -> None:
    with pytest.raises(NotFound, match=r"no Q3_K_S in org/name; it has BF16, Q4_K_M, Q8_0, UD-Q4_K_XL"):
        _choose(sizes=UNSLOTH, selector="Q3_K_S")


def test_one_quantization_of_two_models_is_listed_by_file() -> None:
    names = ("small-Q4_K_M.gguf", "large-Q4_K_M.gguf")
    for how in ({}, {"selector": "Q4_K_M"}):
        with pytest.raises(Ambiguous, match=r"large-Q4_K_M\.gguf.*small-Q4_K_M\.gguf.*--file"):
            _choose(*names, **how)


def test_a_missing_part_of_a_split_gguf_is_named() -> None:
    sizes = _shards("m-Q8_0", 3, "gguf")
    del sizes["m-Q8_0-00003-of-00003.gguf"]
    with pytest.raises(NotFound, match=r"m-Q8_0-00003-of-00003\.gguf"):
        _choose(sizes=sizes)


def test_safetensors_come_before_gguf_unless_a_quantization_is_asked_for() -> None:
    names = ("model.safetensors", "model-Q4_0.gguf")
    assert _choose(*names).kind == "safetensors"
    assert _choose(*names, selector="q4_0").kind == "gguf"


_ENDINGS = [
    ".safetensors",
    ".gguf",
    ".bin",
    ".index.json",
    "adapter_config.json",
    ".fp16",
    "-00001-of-00002",
    "-0-of-0",
]
_WORDS = [
    "model",
    "consolidated",
    "mmproj",
    "original/",
    "Q4_K_M",
    "-3-of-2",
    "999999-of-999999",
    "é",
    "\n",
    ".",
    "..",
    "/",
]
_PIECES = st.sampled_from([*_ENDINGS, *_WORDS])
_NAMES = st.lists(_PIECES, min_size=1, max_size=6).map("".join)


@given(st.dictionaries(_NAMES, st.integers(0, 2**60), max_size=12), st.none() | _NAMES, st.none() | _NAMES)
def test_any_listing_gives_a_choice_from_it_or_an_error_of_ours(
    files: dict[str, int], selector: str | None, file: str | None
) -> None:
    with contextlib.suppress(WeighError):
        choice = choose(files, selector=selector, file=file, where="here")
        assert choice.files
        assert set(choice.files) <= files.keys()
        assert choice.index is None or choice.index in files

"""The command line, as a user meets it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest

from weighbridge.cli import main
from weighbridge.cli.main import VERBS

Run = Callable[..., tuple[int, str, str]]
CONFIG = {
    "model_type": "llama",
    "tie_word_embeddings": False,
    "num_hidden_layers": 2,
    "architectures": ["LlamaForCausalLM"],
}


@pytest.fixture
def weigh(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    layout = layouts.llama(layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=100)
    return layouts.write_folder(tmp_path / "small-llama", layout, config=CONFIG)


TOTAL = 100 * 64 * 2 + 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 2 * 64)


def test_a_model_alone_is_shown(weigh: Run, model: Path) -> None:
    assert weigh(model) == weigh("show", model)
    status, out, err = weigh(model)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "small-llama"
    assert f"{TOTAL:,}" in out


def test_json_has_the_keys_that_others_rely_on(weigh: Run, model: Path) -> None:
    status, out, err = weigh("show", model, "--json")
    said = json.loads(out)
    assert (status, err) == (0, "")
    assert next(iter(said)) == "schema"
    assert said["schema"] == "weighbridge/show/1"
    assert {"signature", "format", "tensors", "bytes", "parameters", "buffers", "extras", "architecture"} <= said.keys()
    wanted = {
        "total",
        "active",
        "active_excluding_input_embedding",
        "trainable",
        "weights",
        "biases",
        "by_role",
        "by_dtype",
    }
    assert wanted <= said["parameters"].keys()
    assert said["parameters"]["total"] == TOTAL
    assert said["bytes"] == 2 * TOTAL
    assert said["tensors"] == 21
    assert said["buffers"] == {"total": 0, "by_name_pattern": {}}


def test_an_option_before_the_model_still_shows_it(weigh: Run, model: Path) -> None:
    assert json.loads(weigh("--json", model)[1])["parameters"]["total"] == TOTAL


def test_layers_tensors_and_formulas(weigh: Run, model: Path) -> None:
    said = json.loads(weigh("show", model, "--layers", "--match", "*.q_proj.weight", "--explain", "--json")[1])
    assert sum(sum(counts.values()) for counts in said["layers"].values()) == TOTAL
    assert [t["name"] for t in said["tensor_list"]] == [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
    formula, _, result = said["explain"]["total"].partition(" = ")
    assert formula.startswith("embedding 100 x 64 + 2 layers x (")
    arithmetic = re.sub(r"[a-z]{2,} ?", "", formula).replace(",", "").replace("x", "*")
    assert eval(arithmetic) == TOTAL == int(result.replace(",", ""))
    text = weigh("show", model, "--layers", "--tensors", "--explain")[1]
    assert "model.layers.1" in text
    assert "model.layers.1.mlp.up_proj.weight" in text


def test_models_side_by_side(weigh: Run, model: Path) -> None:
    status, out, _ = weigh("show", model, model)
    assert status == 0
    assert out.count(f"{TOTAL:,}") == 4  # total and active, twice
    assert len(json.loads(weigh("show", model, model, "--json")[1])["models"]) == 2
    assert weigh("show", model, model, "--layers")[0] == 2


def test_sign_and_verify(weigh: Run, model: Path) -> None:
    status, out, _ = weigh("sign", model, "--json")
    said = json.loads(out)
    assert status == 0
    assert {"schema", "signature", "digest", "tensors", "bytes"} <= said.keys()
    assert said["signature"] == f"small-llama#{said['digest'][:8]}"
    assert weigh("verify", model, said["signature"])[0] == 0
    assert weigh("verify", model, said["digest"])[0] == 0
    wrong = "0" * 8 if not said["digest"].startswith("0" * 8) else "1" * 8
    status, out, _ = weigh("verify", model, f"small-llama#{wrong}", "--json")
    assert (status, json.loads(out)["verified"]) == (1, False)
    full = json.loads(weigh("sign", model, "--full", "--json")[1])["signature"]
    status, out, _ = weigh("verify", model, full, "--json")
    assert (status, json.loads(out)["bits"]) == (0, 256)


def test_verify_sees_one_changed_byte(weigh: Run, model: Path) -> None:
    signature = json.loads(weigh("sign", model, "--json")[1])["signature"]
    file = model / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-3, os.SEEK_END)
        opened.write(b"\x01")
    assert weigh("verify", model, signature)[0] == 1


def test_show_carries_the_digest_once_signed(weigh: Run, model: Path) -> None:
    assert json.loads(weigh("show", model, "--json")[1])["signature"] == "small-llama"
    signature = json.loads(weigh("sign", model, "--json")[1])["signature"]
    assert json.loads(weigh("show", model, "--json")[1])["signature"] == signature
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert json.loads(weigh("show", model, "--json")[1])["signature"] == "small-llama"


def test_a_name_other_than_the_signatures_is_shown_not_judged(weigh: Run, model: Path) -> None:
    digest = json.loads(weigh("sign", model, "--json")[1])["digest"]
    status, out, _ = weigh("verify", model, f"other-name~q4_0#{digest[:16]}", "--json")
    assert status == 0
    assert json.loads(out)["declared_differences"] == {
        "base_model": ["other-name", "small-llama"],
        "quantization": ["q4_0", None],
    }


def test_explain_prints_the_glossary(weigh: Run) -> None:
    assert "not learned" in weigh("explain", "buffers")[1]
    assert json.loads(weigh("explain", "weight", "--json")[1])["term"] == "weight"
    assert "hyperparameter" in weigh("explain")[1]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["show", "/no/such/place"], "no such file"),
        (["show"], "Missing argument"),
        (["show", ".", "--nonsense"], "No such option"),
        (["verify", ".", "not a signature!"], "not a parameter signature"),
        (["verify", ".", "name-only"], "no digest"),
        (["explain", "flux capacitor"], "no such term"),
        (["show", "--offline", "acme/never-cached"], "cache"),
        (["show", "ollama:never-pulled"], "never-pulled"),
        (["show", ".", "--base", "x", "--file", "nope.bin"], "nope.bin"),
        (["show", "/dev/null"], "regular file"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(weigh: Run, args: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("no model")
    os.chdir(tmp_path)
    status, out, err = weigh(*args)
    assert (status, out) == (2, "")
    assert err.startswith("weigh: ")
    assert err.count("\n") == 1
    assert says in err


def test_every_verb_has_its_own_help(weigh: Run) -> None:
    out = weigh("--help")[1]
    for verb, line in VERBS.items():
        assert line in out
        assert "--json" in weigh(verb, "--help")[1]


def test_the_readme_and_the_help_know_the_same_verbs() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert set(re.findall(r"^\| `weigh (\w+)", readme, re.MULTILINE)) == VERBS.keys()


def _process(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weighbridge", *map(str, args)], capture_output=True, text=True, **options
    )  # type: ignore[call-overload]


def test_a_reader_that_leaves_early_is_no_error(model: Path) -> None:
    command = f"{sys.executable} -m weighbridge show {model} --tensors | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_loads_no_third_party_package_until_needed(model: Path) -> None:
    code = (
        "import sys, weighbridge, weighbridge.ledger, weighbridge.ledger.show;"
        "third = {'click', 'rich', 'msgspec', 'numpy', 'torch', 'blake3', 'platformdirs'} & sys.modules.keys();"
        "assert not third, third"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    code = (
        "import sys; sys.argv = ['weigh', 'show', sys.argv[1]]; sys.stdout = open('/dev/null', 'w');"
        "from weighbridge.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "third = {'rich', 'numpy', 'torch', 'blake3', 'ssl', 'http.client', 'sqlite3'} & sys.modules.keys()\n"
        "assert not third, third"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_same_verbs_are_functions_of_the_package(model: Path) -> None:
    import weighbridge

    report = weighbridge.show(str(model))
    assert report.to_dict()["parameters"]["total"] == TOTAL  # type: ignore[index]
    assert "<table" in report._repr_html_()
    signature = weighbridge.sign(str(model))
    assert weighbridge.verify(str(model), signature)
    assert weighbridge.open_model(str(model)).total == TOTAL
    assert {"show", "sign", "verify", "Ledger", "Signature"} <= set(dir(weighbridge))


def test_a_disk_that_is_full_is_a_plain_refusal(model: Path) -> None:
    if not Path("/dev/full").exists():
        return
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "weighbridge", "show", str(model), "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


def test_an_adapters_signature_names_its_base_by_digest(weigh: Run, model: Path, tmp_path: Path) -> None:
    lora: layouts.Layout = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("BF16", (8, 64))}
    adapter = layouts.write_folder(tmp_path / "lora", lora)
    (adapter / "model.safetensors").rename(adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../small-llama"}))
    base = json.loads(weigh("sign", model, "--json")[1])
    said = json.loads(weigh("sign", adapter, "--json")[1])
    assert said["base"] == f"small-llama#{base['digest']}"
    assert said["signature"].startswith("small-llama+lora#")
    assert said["digest"] != base["digest"]
    with (model / "model.safetensors").open("r+b") as opened:
        opened.seek(-3, os.SEEK_END)
        opened.write(b"\x01")
    assert json.loads(weigh("sign", adapter, "--json")[1])["digest"] != said["digest"]


@pytest.mark.parametrize("name", ["", "x\0y.lm_head.weight"])
def test_odd_tensor_names_are_signed_again_and_again(weigh: Run, tmp_path: Path, name: str) -> None:
    layout: layouts.Layout = {"model.embed_tokens.weight": ("F32", (4,)), name: ("F32", (4,))}
    layouts.write_file(tmp_path / "m.safetensors", layout)
    first = weigh("sign", tmp_path / "m.safetensors", "--json")
    assert first[0] == 0
    assert weigh("sign", tmp_path / "m.safetensors", "--json") == first
    assert json.loads(first[1])["signature"] in weigh("show", tmp_path / "m.safetensors")[1]


def test_settings_that_json_cannot_say_are_said_as_text(weigh: Run, model: Path) -> None:
    (model / "trainer_state.json").write_text('{"best_metric": NaN, "epoch": Infinity}')
    out = weigh("show", model, "--json")[1]

    def refuse(text: str) -> None:
        raise AssertionError(text)

    said = json.loads(out, parse_constant=refuse)
    assert said["training"]["progress"] == {"best_metric": "nan", "epoch": "inf"}


def test_layer_numbers_of_any_kind_are_shown(weigh: Run, tmp_path: Path) -> None:
    layout: layouts.Layout = {f"layers.{number}.w": ("F32", (2,)) for number in ("9" * 500, "²", "007", "1")}
    layouts.write_file(tmp_path / "m.safetensors", layout)
    status, _, err = weigh("show", tmp_path / "m.safetensors", "--layers", "--tensors")
    assert (status, err) == (0, "")


def test_a_terminal_of_another_alphabet_gets_numbers_for_what_it_cannot_show(model: Path) -> None:
    done = _process("show", model, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{TOTAL:,}" in done.stdout


def test_a_closed_output_is_no_traceback(model: Path) -> None:
    for args in ("show", "show --json", "--help", "--version"):
        target = "" if args.startswith("--") else f" {model}"
        command = f"{sys.executable} -m weighbridge {args}{target} >&-"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert "Traceback" not in done.stderr


def test_a_slip_of_the_pen_is_not_looked_for_on_the_hub(weigh: Run, model: Path) -> None:
    status, _, err = weigh("sgin", model)
    assert status == 2
    assert "did you mean sign" in err


@pytest.mark.parametrize("args", [["show", ""], ["show", ".", "--file", ""], ["show", "x" * 100_000]])
def test_empty_and_endless_names_are_plain_refusals(weigh: Run, args: list[str]) -> None:
    status, out, err = weigh(*args)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert len(err) < 3000


def test_a_file_leaves_nothing_to_choose(weigh: Run, model: Path) -> None:
    for args in ([f"{model}/model.safetensors::Q4_0"], [model / "model.safetensors", "--file", "config.json"]):
        status, _, err = weigh("show", *args)
        assert status == 2
        assert "one file" in err


def test_paths_are_models_too(model: Path) -> None:
    import weighbridge

    assert weighbridge.open_model(model).total == weighbridge.show(model).data["parameters"]["total"]  # type: ignore[arg-type,index]


# A model that is only described ---------------------------------------------------------------------------------------


def test_a_model_that_does_not_exist_yet_is_counted(weigh: Run) -> None:
    code, out, err = weigh("show", "--arch", "llama", "--set", "num_hidden_layers=40", "--explain", "--json")
    said = json.loads(out)
    assert (code, err) == (0, "")
    # The defaults of LlamaConfig: 32,000 tokens, width 4,096, feed-forward 11,008.
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    assert said["parameters"]["total"] == 2 * 32000 * 4096 + 40 * layer + 4096
    assert said["built"] == {"class": "LlamaForCausalLM", "by": "the blueprint of llama"}
    assert "num_hidden_layers" in said["explain"]["closed_form"]
    assert len(said["architecture"]["mixers"]) == 40


def test_a_field_set_on_a_checkpoint_counts_its_config(weigh: Run, model: Path) -> None:
    code, out, _ = weigh("show", model, "--set", "num_hidden_layers=3", "--set", "vocab_size=7", "--json")
    said = json.loads(out)
    assert code == 0
    assert said["format"] == "config"
    assert said["parameters"]["by_role"]["embedding"] == 7 * 4096


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": None}, "hidden_size is null"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"hidden_size": -4}, "hidden_size is -4"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000"),
        ({"num_hidden_layers": True}, "num_hidden_layers is true"),
        ({"hidden_size": 4097}, "hidden_size is 4,097, which num_attention_heads, 32, does not divide"),
        ({"model_type": "qwen3_vl", "text_config": 5}, "text_config is no object"),
        ({"model_type": "llama5"}, "llama5"),
        ({"model_type": None}, "model_type"),
    ],
)
def test_a_broken_config_is_refused_in_one_line_that_names_the_field(
    weigh: Run, tmp_path: Path, config: dict[str, object], said: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama"} | config))
    code, out, err = weigh("show", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_code_of_a_repository_is_never_run(weigh: Run, tmp_path: Path) -> None:
    (tmp_path / "modeling_trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = {"model_type": "trap", "architectures": ["Trap"], "auto_map": {"AutoModel": "modeling_trap.Trap"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, err = weigh("show", tmp_path)
    assert code == 2
    assert "never run" in err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "lama"], "did you mean llama"),
        (["--arch", "llama", "--set", "foo"], "as in --set num_hidden_layers=40"),
        (["--arch", "llama", "--compare"], "--compare is for one MODEL"),
        (["--compare"], "MODEL"),
    ],
)
def test_slips_with_the_new_options_are_told(weigh: Run, arguments: list[str], said: str) -> None:
    code, _, err = weigh("show", *arguments)
    assert code == 2
    assert said in err


def test_compare_says_what_a_broken_download_lacks(weigh: Run, tmp_path: Path) -> None:
    layout = layouts.llama(layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=100)
    config = CONFIG | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
    }
    whole = layouts.write_folder(tmp_path / "whole", layout, config=config)
    code, out, _ = weigh("show", "--compare", whole, "--json")
    assert code == 0, out
    lacking = {name: tensor for name, tensor in layout.items() if "layers.1.mlp.up_proj" not in name}
    broken = layouts.write_folder(tmp_path / "broken", lacking, config=config)
    code, out, _ = weigh("show", "--compare", broken)
    assert code == 1
    assert "model.layers.1.mlp.up_proj.weight" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "hidden_size=64", "--set", "hidden_size=32"], "given twice"),
        (["--set", "model_type=gpt2"], "named twice"),
    ],
)
def test_what_is_said_twice_is_refused(weigh: Run, options: list[str], says: str) -> None:
    code, _, err = weigh("show", "--arch", "llama", *options)
    assert code == 2
    assert says in err

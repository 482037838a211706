"""Folders that are not what they should be."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import layouts
import pytest

from weighbridge.formats.models import open_model
from weighbridge.ledger.errors import Ambiguous, Malformed, NotFound, Refused, Truncated, WeighError

LAYOUT = layouts.llama(layers=2, hidden=16, ffn=32, heads=2, kv_heads=1, vocab=20)
CONFIG = {"model_type": "llama", "tie_word_embeddings": False}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return layouts.write_folder(tmp_path / "model", LAYOUT, config=CONFIG, shards=3)


def _reindex(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_weights_are_weighed_whatever_their_config_says_of_layers(tmp_path: Path) -> None:
    layouts.write_folder(
        tmp_path,
        {"model.layers.0.mlp.up_proj.weight": ("F32", (3, 4))},
        config={"model_type": "llama", "per_layer_config": {"0": {"hidden_size": 4}}},
    )
    assert open_model(str(tmp_path)).total == 12


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(NotFound, match="model-00002-of-00003"):
        open_model(str(sharded))
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(NotFound, match="00002"):
        open_model(str(sharded))


def test_a_shard_of_another_model_is_noticed(sharded: Path, tmp_path: Path) -> None:
    other = layouts.llama(layers=3, hidden=16, ffn=32, heads=2, kv_heads=1, vocab=20)
    stranger = layouts.write_folder(tmp_path / "other", other, config=CONFIG, shards=3)
    shutil.copy(stranger / "model-00001-of-00003.safetensors", sharded)
    with pytest.raises(Malformed, match="another model"):
        open_model(str(sharded))
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(Malformed, match="two of the files"):
        open_model(str(sharded))


def test_an_index_that_lists_more_than_the_shards_hold_is_noticed(sharded: Path) -> None:
    _reindex(sharded, lambda names: names.update({"model.extra.weight": "model-00001-of-00003.safetensors"}))
    with pytest.raises(Malformed, match=r"model\.extra\.weight"):
        open_model(str(sharded))


def test_an_index_that_lists_less_is_noticed(sharded: Path) -> None:
    _reindex(sharded, lambda names: names.pop("model.norm.weight"))
    with pytest.raises(Malformed, match=r"model\.norm\.weight.*does not know"):
        open_model(str(sharded))


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\x.safetensors", "C:x.safetensors"]
)
def test_an_index_may_not_point_outside_its_folder(sharded: Path, place: str) -> None:
    (sharded.parent / "secret.safetensors").write_bytes(b"secret")
    _reindex(sharded, lambda names: names.update({"lm_head.weight": place}))
    with pytest.raises(Malformed, match="outside its folder"):
        open_model(str(sharded))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "\xff", "[" * 99999]
)
def test_a_forged_index_is_refused(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(Malformed):
        open_model(str(sharded))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"num_hidden_layers": -3}',
        '{"num_hidden_layers": 1e12}',
        '{"num_hidden_layers": 1000000000000}',
        '{"num_hidden_layers": "two"}',
        "{" * 99999,
    ],
)
def test_a_forged_config_is_refused_with_the_field(sharded: Path, text: str) -> None:
    (sharded / "config.json").write_text(text)
    with pytest.raises(Malformed, match=r"config\.json") as caught:
        open_model(str(sharded))
    assert "num_hidden" not in text or "num_hidden_layers" in str(caught.value)


def test_a_config_of_nonsense_numbers_ends_at_once(sharded: Path) -> None:
    fields = {"model_type": "deepseek_v3", "num_hidden_layers": 2, "num_nextn_predict_layers": 2**31}
    (sharded / "config.json").write_text(json.dumps(fields))
    assert open_model(str(sharded)).total > 0


def test_a_folder_with_two_models_asks_which(tmp_path: Path) -> None:
    layouts.write_file(tmp_path / "first.safetensors", LAYOUT)
    layouts.write_file(tmp_path / "second.safetensors", LAYOUT)
    with pytest.raises(Ambiguous, match="--file"):
        open_model(str(tmp_path))
    assert (
        open_model(str(tmp_path), file="first.safetensors").total
        == open_model(str(tmp_path / "second.safetensors")).total
    )


def test_a_truncated_download_is_named(sharded: Path) -> None:
    path = sharded / "model-00002-of-00003.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(Truncated, match="model-00002-of-00003"):
        open_model(str(sharded))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "ends at 0 bytes"),
        (b"x", "ends at 1 bytes"),
        (b"{}", "ends at 2 bytes"),
        (b"\0" * 100, "not what safetensors writes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!doctype html><html></html>", "web page"),
    ],
)
def test_a_file_that_is_no_model_is_one_plain_line(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeighError, match=says) as caught:
        open_model(str(path))
    assert "\n" not in str(caught.value)


def test_an_empty_folder_and_one_without_weights_say_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFound, match=r"config\.json"):
        open_model(str(tmp_path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(WeighError):
        open_model(str(tmp_path / "model.safetensors"))
    with pytest.raises(NotFound):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(WeighError, match="not a regular file"):  # the config alone is not what was meant
        open_model(str(tmp_path))


def test_what_may_not_be_read_is_refused(sharded: Path) -> None:
    path = sharded / "model-00001-of-00003.safetensors"
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything
        path.chmod(0o600)
        return
    with pytest.raises(Refused):
        open_model(str(sharded))


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(WeighError):
        open_model(str(tmp_path / "model.safetensors"))


def test_what_else_lies_around_does_not_disturb(sharded: Path) -> None:
    (sharded / "circle").symlink_to(sharded / "circle")
    (sharded / "dangling.safetensors").symlink_to(sharded / "gone")
    (sharded / "closed").mkdir(mode=0)
    os.mkfifo(sharded / "pipe.gguf")
    assert open_model(str(sharded)).total > 0
    assert open_model(str(sharded / "model-00001-of-00003.safetensors")).total > 0


def test_names_with_odd_characters_are_shown_not_obeyed(tmp_path: Path) -> None:
    layout: layouts.Layout = {"a\nb\x1b[31m\u202e.weight": ("F32", (2,)), "\ud800": ("F32", (1,))}
    layouts.write_file(tmp_path / "m.safetensors", {k: v for k, v in layout.items() if k != "\ud800"})
    from weighbridge.ledger.show import show

    text = str(show(open_model(str(tmp_path / "m.safetensors")), tensors="*"))
    assert "\x1b" not in text
    assert r"a\nb\x1b[31m" in text


def test_a_hub_cache_snapshot_knows_its_repository_and_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--Acme--Llama-7B" / "snapshots" / commit
    layouts.write_folder(folder, LAYOUT, config=CONFIG)
    assert str(open_model(str(folder)).signature) == "acme/llama-7b@0123456789ab"

"""Repositories on the hub, over a hub on this machine that speaks as the real one does."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import Fault, Hub, Zeros, safetensors_file
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

from weighbridge.formats import safetensors
from weighbridge.formats.choose import choose
from weighbridge.formats.folder import LocalFolder
from weighbridge.formats.http import Client
from weighbridge.formats.hub import HubRepo, cached_snapshot, parse, resolve
from weighbridge.formats.hub_cache import settings
from weighbridge.formats.models import open_model
from weighbridge.ledger.errors import Ambiguous, Malformed, NotFound, Refused, Unreachable, WeighError

INDEX = "model.safetensors.index.json"
CONFIG = b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'


def _repo(spec: str, client: Client, **how: object) -> HubRepo:
    repo = resolve(spec, client=client, **how)  # type: ignore[arg-type]
    assert isinstance(repo, HubRepo)
    return repo


def _llama(shards: int) -> dict[str, bytes | Zeros]:
    """Llama-3.1-405B as far as its headers tell: 126 layers in so many shards, 812 GB."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (128256, 16384), "model.norm.weight": (16384,)}
    for layer in range(126):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (16384, 16384) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (1024, 16384) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (53248, 16384) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (16384, 53248)}
        shapes |= {f"{at}.{name}_layernorm.weight": (16384,) for name in ("input", "post_attention")}
    shapes["lm_head.weight"] = (128256, 16384)
    names = list(shapes)
    files: dict[str, bytes | Zeros] = {}
    weight_map = {}
    for n in range(shards):
        shard = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        own = names[n * len(names) // shards : (n + 1) * len(names) // shards]
        files[shard] = safetensors_file({name: shapes[name] for name in own})
        weight_map |= dict.fromkeys(own, shard)
    files[INDEX] = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}, indent=2).encode()
    return {**files, "config.json": CONFIG}


# What a repository is


def test_a_repository_is_its_files_at_one_commit(hub: Hub, client: Client) -> None:
    made = hub.add("org/name", {"config.json": CONFIG, "sub/model.safetensors": bytes(20_000)})
    repo = _repo("org/name", client)
    assert repo.files == {"config.json": len(CONFIG), "sub/model.safetensors": 20_000}
    assert (repo.version, repo.base, repo.id, repo.location) == (made.sha, "org/name", "org/name", "org/name")
    assert (repo.gated, repo.tags) == (False, ("safetensors",))
    assert repo.open("config.json").read(0, 1000) == CONFIG
    assert f"/resolve/{made.sha}/" in hub.seen[-1].path


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("org/name", ("org/name", None, None)),
        ("gpt2", ("gpt2", None, None)),
        ("Qwen/Qwen2.5-0.5B@refs/pr/1", ("Qwen/Qwen2.5-0.5B", "refs/pr/1", None)),
        ("org/name@v1.0::Q4_K_M", ("org/name", "v1.0", "Q4_K_M")),
        ("org/name::sub/file.gguf", ("org/name", None, "sub/file.gguf")),
    ],
)
def test_a_name_has_a_revision_and_a_selector(spec: str, parts: tuple[str, str | None, str | None]) -> None:
    assert parse(spec) == parts


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "a/b/c",
        "../x",
        "org/..",
        "org/na--me",
        "org/name@",
        "org/name@../x",
        "org/name@/x",
        "-o/n",
        "org/na me",
        "o/n\n",
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_asked(hub: Hub, spec: str) -> None:
    with pytest.raises(NotFound, match="not a hub id"):
        resolve(spec)
    assert hub.seen == []


def test_a_revision_may_hold_slashes(hub: Hub, client: Client) -> None:
    hub.add("org/name", {"config.json": CONFIG}, revisions=("main", "refs/pr/1"))
    assert _repo("org/name@refs/pr/1", client).revision == "refs/pr/1"
    assert "refs%2Fpr%2F1" in hub.seen[0].path


def test_a_renamed_repository_is_found_under_its_new_name(hub: Hub, client: Client) -> None:
    hub.add("openai-community/gpt2", {"config.json": CONFIG})
    hub.renamed["gpt2"] = "openai-community/gpt2"
    repo = _repo("gpt2", client)
    assert (repo.base, repo.id) == ("gpt2", "openai-community/gpt2")
    assert repo.open("config.json").read(0, 1000) == CONFIG
    assert len(hub.seen) == 3  # one detour, for the listing only


def test_a_mirror_that_tells_no_sizes_is_asked_for_them(hub: Hub, client: Client) -> None:
    content = {"config.json": CONFIG, "model.safetensors": bytes(20_000), "README.md": b"x", "a b#?.json": b"{}"}
    hub.add("org/name", content, sizes=False)
    repo = _repo("org/name", client)
    assert repo.files == {"config.json": len(CONFIG), "model.safetensors": 20_000, "a b#?.json": 2}
    assert repo.open("a b#?.json").read(0, 2) == b"{}"


def test_names_that_lead_elsewhere_are_left_out(hub: Hub, client: Client) -> None:
    names = ["../../etc/passwd", "/etc/passwd", "a/../../b", "", "a//b", "./a", "a\nb", "ok/model.safetensors"]
    hub.add("org/name", dict.fromkeys(names, b"x"))
    assert list(_repo("org/name", client).files) == ["ok/model.safetensors"]


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"{}", b'{"siblings": 3}', b"[" * 100_000, b"\xff"])
def test_a_login_page_is_not_taken_for_the_hub(client: Client, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    from weighbridge.formats.http import Reply

    reply = Reply(status=200, headers={}, body=body, url="http://x", size=None)
    monkeypatch.setattr(client, "get", lambda *_, **__: reply)
    with pytest.raises(Malformed, match="login page"):
        resolve("org/name", client=client)


@pytest.mark.parametrize(
    "entry", [None, 3, {}, {"rfilename": 3}, {"rfilename": "a.json", "size": -1}, {"rfilename": "a"}]
)
def test_entries_that_make_no_sense_are_left_out(hub: Hub, client: Client, entry: object) -> None:
    from weighbridge.formats.http import Reply

    body = json.dumps(
        {"id": "../evil", "sha": 7, "tags": 3, "siblings": [entry, {"rfilename": "ok", "size": 1}]}
    ).encode()
    asked = []

    def get(url: str, **_: object) -> Reply:
        asked.append(url)
        return Reply(status=200, headers={}, body=body if len(asked) == 1 else b"", url=url, size=None)

    client.get = get  # type: ignore[method-assign]
    repo = _repo("org/name", client)
    assert repo.files == {"ok": 1}
    assert (repo.id, repo.version, repo.tags) == ("org/name", None, ())


# How much is read


def test_a_small_header_costs_one_request_after_the_listing(hub: Hub, client: Client) -> None:
    hub.add(
        "org/name", {"model.safetensors": safetensors_file({f"layer.{n}.weight": (4096, 4096) for n in range(500)})}
    )
    file = _repo("org/name", client).open("model.safetensors")
    assert len(safetensors.read(file).rows) == 500
    assert [seen.server for seen in hub.seen] == ["hub", "hub", "storage"]
    assert client.received < 1 << 18


@pytest.mark.parametrize("indexed", [True, False])
def test_a_model_of_191_shards_costs_one_request_each_and_few_megabytes(
    hub: Hub, client: Client, indexed: bool
) -> None:
    content = _llama(191)
    if not indexed:
        del content[INDEX]
    hub.add("meta-llama/Llama-3.1-405B", content)
    repo = _repo("meta-llama/Llama-3.1-405B", client)
    choice = choose(repo.files, where=repo.location)
    files = [repo.open(name) for name in choice.files]
    counted: list[tuple[int, int]] = []
    repo.prefetch(files, progress=lambda done, total: counted.append((done, total)))
    headers = [safetensors.read(file, index=at) for at, file in enumerate(files)]
    assert sum(row.nbytes for header in headers for row in header.rows) == 2 * 405_853_388_800
    assert len(hub.of("storage")) == 191
    assert len(hub.of("hub")) == 1 + 191
    assert client.received < 5_000_000
    assert counted == [(done, 191) for done in range(1, 192)]


def test_a_ledger_is_read_from_the_hub(hub: Hub) -> None:
    hub.add("meta-llama/Llama-3.1-405B", _llama(4))
    counted: list[int] = []
    ledger = open_model("meta-llama/Llama-3.1-405B", progress=lambda done, total: counted.append(done))
    assert ledger.total == 405_853_388_800  # as the hub's own page of that model counts
    assert counted == [1, 2, 3, 4]


def test_a_header_longer_than_expected_costs_one_request_more(hub: Hub, client: Client) -> None:
    shapes = {f"model.layers.{n}.mlp.experts.{n}.down_proj.weight": (16, 16) for n in range(3000)}
    hub.add("org/name", {"model.safetensors": safetensors_file(shapes)})
    file = _repo("org/name", client).open("model.safetensors")
    assert len(safetensors.read(file).rows) == 3000
    assert len(hub.of("storage")) == 2


def test_a_long_vocabulary_costs_few_requests(hub: Hub, client: Client) -> None:
    size = 20_000_000
    hub.add("org/name", {"m-Q4_K_M.gguf": Zeros(b"GGUF" + os.urandom(1000), 5 << 30)})
    file = _repo("org/name", client).open("m-Q4_K_M.gguf")
    for offset in range(0, size, 4096):
        assert len(file.read(offset, 4096)) == 4096
    assert len(hub.of("storage")) <= 7
    assert client.received < 1.3 * size


CONTENT = bytes(range(256)) * 2000


@given(st.lists(st.tuples(st.integers(0, len(CONTENT) + 10), st.integers(0, 300_000)), max_size=8))
@how(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reading_anywhere_gives_the_bytes_that_are_there(
    hub: Hub, client: Client, reads: list[tuple[int, int]]
) -> None:
    hub.add("org/name", {"model.safetensors": CONTENT})
    file = _repo("org/name", client).open("model.safetensors")
    for offset, length in reads:
        assert file.read(offset, length) == CONTENT[offset : offset + length]


def test_an_empty_file_is_not_asked_for(hub: Hub, client: Client) -> None:
    hub.add("org/name", {"empty": b""})
    assert _repo("org/name", client).open("empty").read(0, 10) == b""
    assert len(hub.seen) == 1


def test_data_is_read_as_asked_for_and_not_kept(hub: Hub, client: Client) -> None:
    hub.add("org/name", {"model.safetensors": Zeros(b"x", 1 << 30)})
    file = _repo("org/name", client).open("model.safetensors")
    for _ in range(2):
        assert len(file.read(500_000_000, 20_000_000)) == 20_000_000
    assert [seen.range for seen in hub.of("storage")] == ["bytes=500000000-519999999"] * 2


def test_the_first_failure_of_many_is_told(hub: Hub, client: Client) -> None:
    hub.add("org/name", _llama(191), gated=True)
    repo = _repo("org/name", client)
    files = [repo.open(name) for name in repo.files if name.endswith(".safetensors")]
    with pytest.raises(Refused, match="gated"):
        repo.prefetch(files)
    assert len(hub.seen) < 60


# Addresses that expire


def test_later_reads_go_where_the_first_was_led(hub: Hub, client: Client) -> None:
    hub.add("org/name", {"model.safetensors": Zeros(b"x", 1 << 30)})
    file = _repo("org/name", client).open("model.safetensors")
    for offset in range(0, 1_000_000_000, 200_000_000):
        file.read(offset, 100)
    assert [seen.server for seen in hub.seen] == ["hub", "hub"] + ["storage"] * 5


def test_an_expired_address_is_asked_for_anew(hub: Hub, client: Client) -> None:
    hub.add("org/name", {"model.safetensors": Zeros(b"x", 1 << 30)})
    file = _repo("org/name", client).open("model.safetensors")
    file.read(0, 10)
    hub.expire_signatures()
    file.read(500_000_000, 10)
    file.read(900_000_000, 10)
    assert [seen.server for seen in hub.seen[3:]] == ["storage", "hub", "storage", "storage"]


def test_a_file_of_another_size_than_listed_is_not_read(hub: Hub, client: Client) -> None:
    made = hub.add("org/name", {"model.safetensors": bytes(20_000)})
    repo = _repo("org/name@" + made.sha, client)
    made.files["model.safetensors"] = bytes(20_001)
    made.revisions += (repo.revision,)
    with pytest.raises(Malformed, match=r"has 20,001 bytes, the hub lists 20,000"):
        repo.open("model.safetensors").read(0, 10)


def test_a_truncated_body_is_completed(hub: Hub, client: Client) -> None:
    hub.add("org/name", {"model.safetensors": CONTENT})
    hub.faults.append(Fault("storage", cut=1000, times=2))
    assert _repo("org/name", client).open("model.safetensors").read(0, 5000) == CONTENT[:5000]


def test_a_busy_hub_is_asked_again(hub: Hub, client: Client, naps: list[float]) -> None:
    hub.add("org/name", {"config.json": CONFIG})
    hub.faults.append(Fault("hub", "api/models", status=429, headers={"Retry-After": "3"}))
    _repo("org/name", client)
    assert naps == [3.0]


def test_the_pause_that_a_server_asks_for_is_really_made(hub: Hub) -> None:
    hub.add("org/name", {"config.json": CONFIG})
    hub.faults.append(Fault("hub", status=429, headers={"Retry-After": "1"}))
    began = time.monotonic()
    resolve("org/name")
    assert 1 <= time.monotonic() - began < 10


# Refusals


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, r"no such repository, or it is private: org/absent; .*check the name.*HF_TOKEN"),
        ("hf_good", r"no such repository, or it is private: org/absent; .*"),
    ],
)
def test_a_repository_that_is_not_there_may_be_private(hub: Hub, token: str | None, says: str) -> None:
    with pytest.raises(NotFound, match=says):
        resolve("org/absent", token=token)


def test_a_private_repository_needs_a_token_that_may_read_it(hub: Hub) -> None:
    hub.add("org/name", {"config.json": CONFIG}, private=True)
    for token in (None, "hf_stranger"):
        with pytest.raises(NotFound, match="private"):
            resolve("org/name", token=token)
    assert list(_repo("org/name", None, token="hf_good").files) == ["config.json"]  # type: ignore[arg-type]


@pytest.mark.parametrize("token", [None, "hf_stranger"])
def test_a_gated_repository_says_where_to_accept_its_terms(hub: Hub, token: str | None) -> None:
    hub.add("org/name", {"config.json": CONFIG}, gated=True)
    repo = resolve("org/name", token=token)
    assert isinstance(repo, HubRepo)
    assert repo.gated
    with pytest.raises(Refused, match=rf"org/name is gated; accept its terms at {hub.endpoint}/org/name .*HF_TOKEN"):
        repo.open("config.json").read(0, 10)


def test_a_wrong_token_is_told_and_not_repeated(hub: Hub) -> None:
    hub.add("org/name", {"config.json": CONFIG})
    with pytest.raises(Refused, match=r"does not accept the token; .*/settings/tokens") as caught:
        resolve("org/name", token="hf_wrong")
    assert "hf_wrong" not in str(caught.value)


def test_a_disabled_repository_is_told(hub: Hub, client: Client) -> None:
    made = hub.add("org/name", {"config.json": CONFIG}, disabled=True)
    with pytest.raises(Refused, match="the hub has disabled org/name"):
        resolve("org/name", client=client)
    made.disabled = False
    repo = _repo("org/name", client)
    made.disabled = True
    with pytest.raises(Refused, match="the hub has disabled org/name"):
        repo.open("config.json").read(0, 10)


def test_a_revision_that_is_not_there_is_told(hub: Hub, client: Client) -> None:
    hub.add("org/name", {"config.json": CONFIG})
    with pytest.raises(NotFound, match="org/name has no revision v9"):
        resolve("org/name@v9", client=client)


def test_a_file_that_is_not_there_is_told(hub: Hub, client: Client) -> None:
    made = hub.add("org/name", {"config.json": CONFIG}, revisions=("main", "v1"))
    repo = _repo("org/name", client)
    with pytest.raises(NotFound, match="org/name has no absent"):
        repo.open("absent")
    object.__setattr__(repo, "version", "v1")
    del made.files["config.json"]
    with pytest.raises(NotFound, match=r"org/name has no config\.json at main"):
        repo.open("config.json").read(0, 10)


@pytest.mark.parametrize(("status", "error"), [(403, Refused), (400, Unreachable), (418, Unreachable)])
def test_any_other_refusal_is_told_with_what_the_hub_says(
    hub: Hub, client: Client, status: int, error: type[WeighError]
) -> None:
    hub.faults.append(Fault("hub", status=status, headers={"X-Error-Message": "not today"}))
    with pytest.raises(error, match="org/name: not today"):
        resolve("org/name", client=client)


def test_a_hub_that_cannot_be_reached_leaves_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 cannot be reached: connection refused; .*--offline"):
        resolve("org/name")


# Tokens


def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.add("org/name", _llama(20), private=True)
    repo = resolve("org/name")
    assert isinstance(repo, HubRepo)
    repo.prefetch([repo.open(name) for name in repo.files])
    assert {seen.authorization for seen in hub.of("hub")} == {"Bearer hf_good"}
    assert {seen.authorization for seen in hub.of("storage")} == {None}
    assert "hf_good" not in repr(repo) + repr(repo.open("config.json")) + repr(settings())


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        ({}, None),
        ({"HF_TOKEN": "hf_a"}, "hf_a"),
        ({"HF_TOKEN": " hf_a\n"}, "hf_a"),
        ({"HF_TOKEN": "hf_a", "HUGGING_FACE_HUB_TOKEN": "hf_b"}, "hf_a"),
        ({"HUGGING_FACE_HUB_TOKEN": "hf_b"}, "hf_b"),
        ({"HF_HOME": "{home}"}, "hf_home"),
        ({"HF_HOME": "{home}", "HF_TOKEN": "hf_a"}, "hf_a"),
        ({"HF_HOME": "{home}", "HF_TOKEN_PATH": "{home}/other"}, "hf_other"),
        ({"HF_HOME": "{home}", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, None),
        ({"HF_TOKEN": "hf_a", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "true"}, None),
        ({"XDG_CACHE_HOME": "{home}"}, "hf_xdg"),
        ({"HF_TOKEN_PATH": "{home}"}, None),
    ],
)
def test_the_token_is_found_where_the_hubs_client_finds_it(
    tmp_path: Path, environ: dict[str, str], token: str | None
) -> None:
    (tmp_path / "token").write_text("hf_home\n")
    (tmp_path / "other").write_text("hf_other")
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface" / "token").write_text("hf_xdg")
    environ = {"HF_HOME": "/nowhere"} | {name: value.format(home=tmp_path) for name, value in environ.items()}
    if "XDG_CACHE_HOME" in environ:
        del environ["HF_HOME"]
    assert settings(environ).token == token


def test_the_environment_sets_the_rest() -> None:
    plain = settings({"HOME": "/home/me"})
    assert (plain.endpoint, plain.offline, plain.timeout) == ("https://huggingface.co", False, 10.0)
    assert plain.cache == Path("~/.cache/huggingface/hub").expanduser()
    assert settings({"HF_HOME": "/data"}).cache == Path("/data/hub")
    assert settings({"XDG_CACHE_HOME": "/x"}).cache == Path("/x/huggingface/hub")
    assert settings({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/data"}).cache == Path("/old")
    assert settings({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"}).cache == Path("/new")
    assert settings({"HF_ENDPOINT": "https://mirror/hf/"}).endpoint == "https://mirror/hf"
    assert settings({"HF_HUB_DOWNLOAD_TIMEOUT": "30"}).timeout == 30
    assert settings({"HF_HUB_ETAG_TIMEOUT": "3"}).answer_timeout == 3
    assert settings({"HF_HUB_OFFLINE": "yes"}).offline
    assert settings({"TRANSFORMERS_OFFLINE": "1"}).offline
    assert not settings({"HF_HUB_OFFLINE": "0"}).offline
    for wrong in ("soon", "-1", "nan", "inf"):
        with pytest.raises(Refused, match="HF_HUB_ETAG_TIMEOUT"):
            settings({"HF_HUB_ETAG_TIMEOUT": wrong})


# The hub's own client, this hub, and the cache that it writes

_REAL_CLIENT = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

endpoint, cache = sys.argv[1:]
api = HfApi(endpoint=endpoint, token=False)
info = api.model_info("org/sharded", files_metadata=True)
found = {"sha": info.sha, "sizes": {s.rfilename: s.size for s in info.siblings}, "gated": info.gated, "errors": {}}
at = {"endpoint": endpoint, "cache_dir": cache, "token": False}
found["folder"] = snapshot_download("org/sharded", **at)
found["config"] = open(hf_hub_download("org/partial", "config.json", **at)).read()
hf_hub_download("org/partial", "model.safetensors.index.json", **at)
hf_hub_download("org/partial", "model-00001-of-00002.safetensors", **at)
hf_hub_download("org/branch", "model.safetensors", revision="refs/pr/1", **at)
hf_hub_download("org/adapter", "adapter_config.json", **at)
hf_hub_download("org/adapter", "adapter_model.safetensors", **at)
hf_hub_download("org/config", "config.json", **at)
hf_hub_download("org/quantized", "m-Q4_K_M.gguf", **at)
hf_hub_download("org/quantized", "sub/m-Q8_0.gguf", **at)
hf_hub_download("gpt2", "model.safetensors", **at)
for name, call in {
    "absent": lambda: api.model_info("org/absent"),
    "revision": lambda: api.model_info("org/sharded", revision="v9"),
    "gated": lambda: hf_hub_download("org/gated", "config.json", **at),
    "file": lambda: hf_hub_download("org/sharded", "absent", **at),
}.items():
    try:
        call()
    except (EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        found["errors"][name] = type(error).__name__
print(json.dumps(found))
"""


def _weights(*names: str) -> bytes:
    file = safetensors_file(dict.fromkeys(names, (64, 64)))
    return file[: len(file)]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], Hub]:
    """A cache as huggingface_hub fills it, what it saw of the hub, and that hub, which is gone."""
    cache = tmp_path_factory.mktemp("cache")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    shards = {
        "config.json": CONFIG,
        INDEX: json.dumps({"weight_map": weight_map}).encode(),
        "model-00001-of-00002.safetensors": _weights("a"),
        "model-00002-of-00002.safetensors": _weights("b"),
    }
    with Hub() as hub:
        hub.add("org/sharded", shards, large=4000)
        hub.add("org/partial", shards, large=4000)
        hub.add("org/branch", {"model.safetensors": _weights("a")}, revisions=("main", "refs/pr/1"))
        hub.add("org/adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": _weights("a")})
        hub.add("org/config", {"config.json": CONFIG, "model.safetensors": _weights("a")})
        hub.add("org/quantized", {"m-Q4_K_M.gguf": b"GGUF" * 9, "sub/m-Q8_0.gguf": b"GGUF" * 8, "m-F16.gguf": b"GGUF"})
        hub.add("openai-community/gpt2", {"model.safetensors": _weights("a")})
        hub.renamed["gpt2"] = "openai-community/gpt2"
        hub.add("org/gated", {"config.json": CONFIG}, gated=True)
        environ = {"PATH": os.environ["PATH"], "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", _REAL_CLIENT, hub.endpoint, str(cache)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    return cache, json.loads(done.stdout), hub


@pytest.fixture
def cache(cached: tuple[Path, dict[str, object], Hub], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(cached[0]))
    return cached[0]


@pytest.fixture
def _no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_hubs_own_client_takes_this_hub_for_one(cached: tuple[Path, dict[str, object], Hub]) -> None:
    _, found, hub = cached
    repo = hub.repos["org/sharded"]
    assert found["sha"] == repo.sha
    assert found["sizes"] == {name: len(content) for name, content in repo.files.items()}
    assert found["config"] == CONFIG.decode()
    assert found["errors"] == {
        "absent": "RepositoryNotFoundError",
        "revision": "RevisionNotFoundError",
        "gated": "GatedRepoError",
        "file": "RemoteEntryNotFoundError",
    }


@pytest.mark.usefixtures("_no_sockets")
def test_what_the_hubs_client_has_downloaded_is_read_from_its_cache(
    cached: tuple[Path, dict[str, object], Hub], cache: Path
) -> None:
    sha = cached[2].repos["org/sharded"].sha
    for revision in ("main", sha):
        assert cached_snapshot("org/sharded", revision) == Path(str(cached[1]["folder"]))
    repo = resolve("org/sharded")
    assert isinstance(repo, LocalFolder)
    assert (repo.version, repo.base) == (sha, "org/sharded")
    assert open_model("org/sharded", offline=True).total == 2 * 64 * 64


@pytest.mark.usefixtures("_no_sockets", "cache")
def test_branches_adapters_and_old_names_are_read_from_the_cache() -> None:
    assert cached_snapshot("org/branch", "refs/pr/1") is not None
    assert cached_snapshot("org/branch", "main") is None
    assert cached_snapshot("org/adapter", "main") is not None
    assert cached_snapshot("gpt2", "main") is not None
    assert cached_snapshot("org/sharded", "../refs/main") is None
    assert cached_snapshot("org/never", "main") is None


@pytest.mark.usefixtures("_no_sockets", "cache")
def test_a_part_of_a_model_is_not_taken_for_it() -> None:
    assert cached_snapshot("org/partial", "main") is None
    with pytest.raises(
        NotFound,
        match=r"only a part of org/partial: .* missing: model-00002-of-00002\.safetensors; .*hf download org/partial",
    ):
        resolve("org/partial", offline=True)


@pytest.mark.usefixtures("_no_sockets", "cache")
def test_a_quantization_is_cached_by_itself() -> None:
    assert cached_snapshot("org/quantized", "main") is None  # others may exist: only the hub knows
    assert cached_snapshot("org/quantized", "main", selector="q4_k_m") is not None
    assert cached_snapshot("org/quantized", "main", file="sub/m-Q8_0.gguf") is not None
    assert cached_snapshot("org/quantized", "main", selector="F16") is None
    assert isinstance(resolve("org/quantized::Q8_0"), LocalFolder)
    with pytest.raises(NotFound, match="only a part of org/quantized: no F16"):
        resolve("org/quantized::F16", offline=True)
    with pytest.raises(NotFound, match="holds 2 models"):
        resolve("org/quantized", offline=True)


@pytest.mark.usefixtures("_no_sockets", "cache")
def test_a_config_alone_serves_only_offline() -> None:
    assert cached_snapshot("org/config", "main") is None
    assert cached_snapshot("org/config", "main", offline=True) is not None


@pytest.mark.usefixtures("_no_sockets", "cache")
@pytest.mark.parametrize("by", ["argument", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_opens_no_connection_and_says_what_is_missing(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by != "argument":
        monkeypatch.setenv(by, "1")
    for spec, says in {
        "org/never": r"org/never is not in the local cache .*; go online once, or fetch it: hf download org/never",
        "org/sharded@v2": "holds org/sharded, but not its revision v2",
    }.items():
        with pytest.raises(NotFound, match=says):
            resolve(spec, offline=by == "argument")


def test_a_part_in_the_cache_does_not_stand_in_the_way_online(hub: Hub, client: Client, cache: Path) -> None:
    hub.add("org/partial", _llama(2))
    assert len(choose(_repo("org/partial", client).files, where="x").files) == 2


@pytest.mark.parametrize("commit", ["../../../etc", "", "0" * 200, "\xff", "main"])
def test_a_forged_reference_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    storage = tmp_path / "models--org--name"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(commit, encoding="latin-1")
    (storage / "snapshots").mkdir()
    assert cached_snapshot("org/name", "main") is None


def test_a_repository_of_quantizations_asks_which(hub: Hub, client: Client) -> None:
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
    hub.add("org/quantized", {"m-Q4_K_M.gguf": head, "m-Q8_0.gguf": head, "mmproj-F16.gguf": head})
    repo = _repo("org/quantized", client)
    with pytest.raises(Ambiguous, match=r"org/quantized holds 2 models: .*choose one: org/quantized::Q4_K_M"):
        choose(repo.files, where=repo.location)

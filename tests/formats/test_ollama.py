"""Models in Ollama's store, over stores laid out as Ollama lays them out."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from weighbridge.formats.choose import choose
from weighbridge.formats.ollama import find, installed, stores
from weighbridge.ledger.errors import Malformed, NotFound, Refused, Truncated, Unknown, WeighError

MODEL = b"GGUF" + bytes(96)
CONFIG = {"model_format": "gguf", "model_family": "llama", "model_type": "3.2B", "file_type": "Q4_K_M"}


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True)

    def blob(self, content: bytes, *, mark: str = "-") -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (self.root / "blobs" / f"sha256{mark}{digest}").write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def layer(self, kind: str, content: bytes, **more: str) -> dict[str, object]:
        return {"mediaType": f"application/vnd.ollama.image.{kind}", **self.blob(content, **more)}

    def manifest(self, *layers: dict[str, object], config: bool = True) -> dict[str, object]:
        found: dict[str, object] = {"schemaVersion": 2, "layers": list(layers)}
        if config:
            kind = "application/vnd.docker.container.image.v1+json"
            found["config"] = {"mediaType": kind, **self.blob(json.dumps(CONFIG).encode())}
        return found

    def name(self, path: str, manifest: object, *, layout: str = "manifests") -> None:
        """Writes a manifest; the newer layout links to a blob of its own."""
        at = self.root / layout / path
        at.parent.mkdir(parents=True, exist_ok=True)
        raw = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        if layout == "manifests":
            at.write_bytes(raw)
        else:
            digest = str(self.blob(raw)["digest"]).replace(":", "-")
            at.symlink_to(Path(os.path.relpath(self.root / "blobs" / digest, at.parent)))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    return Store(tmp_path / "models")


LIBRARY = "registry.ollama.ai/library"


def test_a_model_is_a_gguf_of_the_store(store: Store) -> None:
    layers = store.layer("model", MODEL), store.layer("template", b"{{ .Prompt }}"), store.layer("license", b"MIT")
    store.name(f"{LIBRARY}/llama3.2/latest", store.manifest(*layers))
    model = find("ollama:llama3.2")
    assert (model.location, model.base, model.version) == ("ollama:llama3.2", "llama3.2", None)
    assert model.files == {"model.gguf": 100}
    assert model.open("model.gguf").read(0, 200) == MODEL
    assert model.metadata == CONFIG
    choice = choose(model.files, where=model.location)
    assert (choice.kind, choice.files) == ("gguf", ("model.gguf",))


@pytest.mark.parametrize(
    ("spec", "path", "base", "version"),
    [
        ("ollama:qwen3:8b-q4_K_M", f"{LIBRARY}/qwen3/8b-q4_K_M", "qwen3", "8b-q4_K_M"),
        ("qwen3:8b", f"{LIBRARY}/qwen3/8b", "qwen3", "8b"),
        ("ollama:Qwen3:8B", f"{LIBRARY}/qwen3/8b", "qwen3", "8b"),
        ("ollama:someone/tuned", "registry.ollama.ai/someone/tuned/latest", "someone/tuned", None),
        ("ollama:hf.co/org/Name-GGUF:Q8_0", "hf.co/org/Name-GGUF/Q8_0", "org/Name-GGUF", "Q8_0"),
        ("ollama:host:5000/ns/name:tag", "host:5000/ns/name/tag", "ns/name", "tag"),
    ],
)
def test_a_model_is_named_as_ollama_names_it(
    store: Store, spec: str, path: str, base: str, version: str | None
) -> None:
    store.name(path, store.manifest(store.layer("model", MODEL)))
    model = find(spec)
    assert (model.base, model.version) == (base, version)


def test_newer_stores_link_to_manifests_under_another_host(store: Store) -> None:
    store.name("ollama.com/library/gemma3/4b", store.manifest(store.layer("model", MODEL)), layout="manifests-v2")
    store.name(f"{LIBRARY}/gemma3/4b", b"an older one")
    for spec in (
        "ollama:gemma3:4b",
        "ollama:registry.ollama.ai/library/gemma3:4b",
        "ollama:ollama.com/library/gemma3:4b",
    ):
        assert find(spec).files == {"model.gguf": 100}
    assert set(installed(store.root)) == {"gemma3:4b"}


@pytest.mark.parametrize("inline", [True, False])
def test_of_manifests_for_several_runners_the_gguf_is_taken(store: Store, inline: bool) -> None:
    mlx = store.manifest(store.layer("tensor", b"one tensor"))
    gguf = store.manifest(store.layer("model", MODEL))
    children = [
        {**child, "runner": runner} if inline else {**store.blob(json.dumps(child).encode()), "runner": runner}
        for child, runner in ((mlx, "mlx"), (gguf, "llamacpp"))
    ]
    several = {"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": children}
    store.name("ollama.com/library/gemma3/4b", several, layout="manifests-v2")
    assert find("ollama:gemma3:4b").files == {"model.gguf": 100}


def test_adapters_and_projectors_are_told_apart_from_the_model(store: Store) -> None:
    layers = store.layer("model", MODEL), store.layer("projector", b"GGUF-p"), store.layer("adapter", b"GGUF-a")
    store.name(f"{LIBRARY}/llava/latest", store.manifest(*layers))
    model = find("ollama:llava")
    assert model.files == {"model.gguf": 100, "mmproj-1.gguf": 6}
    assert [path.read_bytes() for path in model.adapters] == [b"GGUF-a"]
    assert choose(model.files, where="x").files == ("model.gguf",)


def test_a_model_of_several_files_is_one_split_gguf(store: Store) -> None:
    store.name(f"{LIBRARY}/big/latest", store.manifest(store.layer("model", MODEL), store.layer("model", b"GGUF2")))
    model = find("ollama:big")
    assert choose(model.files, where="x").files == ("model-00001-of-00002.gguf", "model-00002-of-00002.gguf")
    assert model.open("model-00002-of-00002.gguf").read(0, 9) == b"GGUF2"


def test_early_stores_write_a_colon_in_the_names_of_blobs(store: Store) -> None:
    store.name(f"{LIBRARY}/old/latest", store.manifest(store.layer("model", MODEL, mark=":"), config=False))
    assert find("ollama:old").files == {"model.gguf": 100}


def test_an_unknown_model_is_answered_with_those_near(store: Store) -> None:
    for path in ("llama3.2/3b", "llama3.2/1b", "qwen3/8b"):
        store.name(f"{LIBRARY}/{path}", store.manifest())
    with pytest.raises(
        NotFound, match=r"no model llama3\.2:latest in Ollama's store; it has llama3\.2:1b, llama3\.2:3b$"
    ):
        find("ollama:llama3.2")
    with pytest.raises(NotFound, match=r"it has qwen3:8b"):
        find("ollama:qwen:8b")
    with pytest.raises(NotFound, match=r"it has llama3\.2:1b, llama3\.2:3b, qwen3:8b"):
        find("ollama:zzz")


def test_an_empty_store_says_how_to_fill_it(store: Store) -> None:
    with pytest.raises(NotFound, match=r"empty or not there; ollama pull llama3\.2:latest"):
        find("ollama:llama3.2")


def test_a_model_in_single_tensors_is_refused_plainly(store: Store) -> None:
    store.name(f"{LIBRARY}/mlx/latest", store.manifest(store.layer("tensor", b"x")))
    with pytest.raises(Unknown, match="tensor by tensor"):
        find("ollama:mlx")


def test_a_model_in_the_cloud_has_no_weights_here(store: Store) -> None:
    store.name(f"{LIBRARY}/gpt-oss/120b-cloud", {"schemaVersion": 2, "layers": None, "config": {}})
    with pytest.raises(Malformed, match="no weights here"):
        find("ollama:gpt-oss:120b-cloud")


@pytest.mark.parametrize(
    "digest",
    ["../../../etc/passwd", "sha256:../../etc/passwd", "sha256:" + "0" * 63, "sha256:" + "0" * 64 + "/..", 3, None],
)
def test_a_layer_that_points_outside_the_store_is_refused(store: Store, digest: object) -> None:
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 1}
    store.name(f"{LIBRARY}/evil/latest", store.manifest(layer))
    with pytest.raises(Refused, match="no digest"):
        find("ollama:evil")


@pytest.mark.parametrize(
    "spec",
    [
        "ollama:",
        "ollama:../x",
        "ollama:a/../b",
        "ollama:..",
        "ollama:a:../../x",
        "ollama:a/b/c/d",
        "ollama:/x",
        "ollama:a b",
    ],
)
def test_a_name_that_leads_elsewhere_is_no_name(store: Store, spec: str) -> None:
    store.name(f"{LIBRARY}/x/latest", store.manifest())
    with pytest.raises(NotFound, match="not the name of an Ollama model"):
        find(spec)


def test_missing_and_shortened_layers_are_told(store: Store) -> None:
    layer = store.layer("model", MODEL)
    store.name(f"{LIBRARY}/m/latest", store.manifest(layer))
    blob = store.root / "blobs" / str(layer["digest"]).replace(":", "-")
    blob.write_bytes(MODEL[:50])
    with pytest.raises(Truncated, match="a layer has 50 bytes, not 100; ollama pull it again"):
        find("ollama:m")
    blob.unlink()
    with pytest.raises(NotFound, match=r"its layer sha256-[0-9a-f]{12} is not in the store"):
        find("ollama:m")


NO_CHILDREN = b'{"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": [3, {}]}'
NO_LAYERS = [b'{"layers": 3}', b'{"layers": [3, null]}', NO_CHILDREN]


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b" " * 5_000_000, *NO_LAYERS])
def test_a_damaged_manifest_is_told(store: Store, manifest: bytes) -> None:
    store.name(f"{LIBRARY}/bad/latest", manifest)
    with pytest.raises(WeighError):
        find("ollama:bad")


def test_stores_are_where_ollama_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stores({"OLLAMA_MODELS": "/data/models"}) == [Path("/data/models")]
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ollama" / "models").mkdir(parents=True)
    assert stores({})[0] == tmp_path / ".ollama" / "models"

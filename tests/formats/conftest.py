"""A hub to read from, on this machine."""

from collections.abc import Iterator

import pytest
from hub_server import Hub

from weighbridge.formats.http import Client


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that HF_ENDPOINT names, in an environment that says nothing else."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def naps() -> list[float]:
    """How long `client` would have slept."""
    return []


@pytest.fixture
def client(hub: Hub, naps: list[float]) -> Iterator[Client]:
    """A client of `hub` that notes its pauses and goes on at once."""
    client = Client(hub.endpoint, timeout=5, sleep=naps.append)
    yield client
    client.close()

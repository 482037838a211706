"""The HTTP client, against real servers that do what networks do."""

import email.utils
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from hub_server import Fault, Hub, Tunnel, Zeros

from weighbridge.formats.http import Client
from weighbridge.ledger.errors import Malformed, Refused, Truncated, Unreachable, WeighError

SMALL = b"0123456789" * 50
TOKEN = "hf_good"


@pytest.fixture(autouse=True)
def _files(hub: Hub) -> None:
    hub.add("org/name", {"small": SMALL, "large": SMALL * 100, "vast": Zeros(SMALL, 3 << 30)})


def _at(hub: Hub, file: str) -> str:
    return f"{hub.endpoint}/org/name/resolve/main/{file}"


def test_a_connection_serves_many_requests(hub: Hub, client: Client) -> None:
    for offset in range(20):
        assert client.get(_at(hub, "small"), offset=offset, limit=5).body == SMALL[offset : offset + 5]
    assert len({seen.peer for seen in hub.seen}) == 1


def test_sixteen_threads_share_connections(hub: Hub, client: Client) -> None:
    def read() -> None:
        for _ in range(5):
            assert client.get(_at(hub, "large"), offset=100, limit=1000).body == (SMALL * 100)[100:1100]

    threads = [threading.Thread(target=read) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.requests == len(hub.seen) == 16 * 5 * 2
    assert client.received == 16 * 5 * 1000
    assert len({seen.peer for seen in hub.seen}) <= 2 * 16


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced_at_once(
    hub: Hub, client: Client, naps: list[float]
) -> None:
    client.get(_at(hub, "small"), limit=1000)
    hub.faults.append(Fault("hub", drop=True))
    assert client.get(_at(hub, "small"), limit=1000).body == SMALL
    assert naps == []


def test_a_range_at_the_end_of_a_file_is_shorter(hub: Hub, client: Client) -> None:
    reply = client.get(_at(hub, "small"), offset=495, limit=100)
    assert (reply.status, reply.body, reply.size) == (206, SMALL[495:], 500)
    assert client.get(_at(hub, "small"), offset=500, limit=100).status == 416


# Where the token goes


def test_the_token_never_leaves_the_endpoint(hub: Hub) -> None:
    client = Client(hub.endpoint, token=TOKEN)
    client.get(_at(hub, "large"), offset=0, limit=10)
    client.get(f"{hub.storage}/org/name/large?Signature=0", offset=0, limit=10)
    client.close()
    assert [seen.authorization for seen in hub.of("hub")] == [f"Bearer {TOKEN}"]
    assert [seen.authorization for seen in hub.of("storage")] == [None, None]


def test_the_token_does_not_come_back_after_a_detour(hub: Hub) -> None:
    client = Client(hub.endpoint, token=TOKEN)
    hub.faults += [
        Fault("hub", "small", status=302, headers={"Location": f"{hub.storage}/detour"}),
        Fault("storage", "detour", status=302, headers={"Location": _at(hub, "small")}),
    ]
    assert client.get(_at(hub, "small"), limit=1000).body == SMALL
    client.close()
    assert [seen.authorization for seen in hub.seen] == [f"Bearer {TOKEN}", None, None]


def test_the_token_stays_on_a_redirect_within_the_endpoint(hub: Hub) -> None:
    client = Client(hub.endpoint, token=TOKEN)
    hub.faults.append(Fault("hub", "old", status=307, headers={"Location": "/org/name/resolve/main/small"}))
    assert client.get(f"{hub.endpoint}/old", limit=1000).url == _at(hub, "small")
    client.close()
    assert [seen.authorization for seen in hub.seen] == [f"Bearer {TOKEN}"] * 2


@pytest.mark.parametrize("token", ["hf_x\r\nHost: evil", "hf x", "hf_\N{BULLET}"])
def test_a_token_that_is_none_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(Refused) as caught:
        Client("https://hub.example", token=token)
    assert token not in str(caught.value)


def test_a_client_does_not_show_its_token(hub: Hub) -> None:
    client = Client(hub.endpoint, token="hf_secret")
    assert "hf_secret" not in repr(client)
    with pytest.raises(WeighError) as caught:
        client.get(f"{hub.endpoint.rpartition(':')[0]}:1/x?secret=hf_secret", limit=10)
    assert "hf_secret" not in repr(caught.value) + str(caught.value.__context__) + str(caught.value.__cause__)


# Busy and broken servers


def test_a_busy_server_is_asked_again_after_the_pause_it_wants(hub: Hub, client: Client, naps: list[float]) -> None:
    hub.faults.append(Fault("hub", status=429, headers={"Retry-After": "7"}))
    assert client.get(_at(hub, "small"), limit=1000).body == SMALL
    assert naps == [7.0]


def test_a_pause_may_be_given_as_a_date(hub: Hub, client: Client, naps: list[float]) -> None:
    hub.faults.append(Fault("hub", status=503, headers={"Retry-After": email.utils.formatdate(time.time() + 30)}))
    client.get(_at(hub, "small"), limit=1000)
    assert 25 < naps[0] <= 30


def test_a_pause_may_be_given_as_the_hub_gives_it(hub: Hub, client: Client, naps: list[float]) -> None:
    hub.faults.append(Fault("hub", status=429, headers={"RateLimit": '"api";r=0;t=55'}))
    client.get(_at(hub, "small"), limit=1000)
    assert naps == [55.0]


def test_too_long_a_pause_is_told_instead_of_waited(hub: Hub, client: Client, naps: list[float]) -> None:
    hub.faults.append(Fault("hub", status=429, headers={"Retry-After": "300"}))
    with pytest.raises(Unreachable, match=r"too many requests and asks for a pause of 300 s; .*--offline"):
        client.get(_at(hub, "small"), limit=1000)
    assert naps == []


def test_a_server_that_stays_busy_is_given_up(hub: Hub, client: Client, naps: list[float]) -> None:
    hub.faults.append(Fault("hub", status=429, headers={"Retry-After": "2"}, times=99))
    with pytest.raises(Unreachable, match="answered 5 times with too many requests, and asks for another 2 s"):
        client.get(_at(hub, "small"), limit=1000)
    assert naps == [2.0] * 4


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_may_pass(hub: Hub, client: Client, naps: list[float], status: int) -> None:
    hub.faults.append(Fault("hub", status=status, times=2))
    assert client.get(_at(hub, "small"), limit=1000).body == SMALL
    assert len(naps) == 2
    assert naps[0] < naps[1]
    hub.faults.append(Fault("hub", status=status, times=99))
    with pytest.raises(Unreachable, match=f"answered 5 times with error {status}"):
        client.get(_at(hub, "small"), limit=1000)


def test_a_refusal_is_not_repeated(hub: Hub, client: Client, naps: list[float]) -> None:
    assert client.get(_at(hub, "absent"), limit=1000).status == 404
    assert (len(hub.seen), naps) == (1, [])


def test_of_a_broken_body_only_the_rest_is_asked_for(hub: Hub, client: Client) -> None:
    hub.faults += [Fault("storage", cut=100), Fault("storage", cut=30)]
    assert client.get(_at(hub, "large"), offset=7, limit=1000).body == (SMALL * 100)[7:1007]
    assert [seen.range for seen in hub.of("storage")] == ["bytes=7-1006", "bytes=107-1006", "bytes=137-1006"]


def test_a_broken_body_without_a_range_is_asked_for_anew(hub: Hub, client: Client) -> None:
    hub.faults.append(Fault("hub", cut=100))
    assert client.get(_at(hub, "small"), limit=1000).body == SMALL
    assert [seen.range for seen in hub.seen] == [None, None]


def test_a_body_that_keeps_breaking_off_is_given_up(hub: Hub, client: Client) -> None:
    hub.faults.append(Fault("storage", cut=10, times=99))
    with pytest.raises(Truncated, match="keeps breaking off"):
        client.get(_at(hub, "large"), offset=0, limit=1000)
    assert len(hub.of("storage")) == 5


def test_a_server_that_drops_every_connection_is_given_up(hub: Hub, client: Client) -> None:
    hub.faults.append(Fault("hub", drop=True, times=99))
    with pytest.raises(Unreachable, match=r"cannot be reached: .*--offline uses the local cache"):
        client.get(_at(hub, "small"), limit=1000)


def test_a_body_that_drips_is_not_waited_for(hub: Hub) -> None:
    hub.faults.append(Fault("hub", drip=0.05))
    began = time.monotonic()
    with pytest.raises(Unreachable, match="sends too slowly"):
        Client(hub.endpoint, timeout=0.3).get(_at(hub, "small"), limit=1000)
    assert time.monotonic() - began < 2


def test_a_server_that_does_not_answer_is_given_up(naps: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1, sleep=naps.append)
        with pytest.raises(Unreachable, match=r"nothing within 0\.1 s"):
            client.get(f"http://127.0.0.1:{silent.getsockname()[1]}/x", limit=1000)
    assert len(naps) == 2  # a silence costs more than a refusal: it counts twice


def test_no_network_is_told_at_once(client: Client, naps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(Unreachable, match=r"hub\.example cannot be reached: its name cannot be resolved; .*--offline"):
        client.get("http://hub.example/x", limit=10)
    assert naps == []


# Servers against the protocol


def test_a_server_that_ignores_ranges_is_read_no_further_than_needed(hub: Hub, client: Client) -> None:
    hub.faults.append(Fault("storage", whole=True, times=99))
    reply = client.get(_at(hub, "vast"), offset=490, limit=100)
    assert reply.body == SMALL[490:] + bytes(90)
    assert reply.size == 3 << 30
    assert client.received < 1 << 20
    time.sleep(0.05)
    assert hub.sent < 32 << 20  # what fits between the two, not 3 GiB


def test_a_server_that_ignores_ranges_is_not_read_to_a_deep_place(hub: Hub, client: Client) -> None:
    hub.faults.append(Fault("storage", whole=True, times=99))
    with pytest.raises(Refused, match=r"sends files only whole, and byte 2,000,000,000 .*download the model"):
        client.get(_at(hub, "vast"), offset=2_000_000_000, limit=100)


@pytest.mark.parametrize("shift", [-1, 1])
def test_other_bytes_than_asked_for_are_not_believed(hub: Hub, client: Client, shift: int) -> None:
    hub.faults.append(Fault("storage", shift=shift))
    with pytest.raises(Malformed, match="other bytes than were asked for"):
        client.get(_at(hub, "large"), offset=100, limit=10)


def test_a_body_larger_than_makes_sense_is_not_read(hub: Hub, client: Client) -> None:
    with pytest.raises(Malformed, match=r"sends 3,221,225,472 bytes where at most 1,000 make sense"):
        client.get(_at(hub, "vast"), limit=1000)
    assert client.received == 0


def test_an_endless_body_is_not_read_to_its_end(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pour() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                try:
                    while True:
                        connection.sendall(b"1000\r\n" + bytes(4096) + b"\r\n")
                except OSError:
                    pass

        threading.Thread(target=pour, daemon=True).start()
        with pytest.raises(Malformed, match=r"sends more than the 100,000 bytes"):
            client.get(f"http://127.0.0.1:{server.getsockname()[1]}/x", limit=100_000)


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1", "http://a b/", "http://x:0/"],
)
def test_a_redirect_to_no_web_address_is_refused(hub: Hub, client: Client, location: str) -> None:
    hub.faults.append(Fault("hub", status=302, headers={"Location": location}))
    with pytest.raises(Refused, match="address"):
        client.get(_at(hub, "small"), limit=1000)


def test_a_redirect_without_end_is_left(hub: Hub, client: Client) -> None:
    hub.faults.append(Fault("hub", status=302, headers={"Location": "/again"}, times=99))
    with pytest.raises(Malformed, match="redirects more than 5 times"):
        client.get(_at(hub, "small"), limit=1000)
    assert len(hub.seen) == 6


def test_a_redirect_may_hold_any_characters(hub: Hub, client: Client) -> None:
    hub.repos["org/name"].files["größe \N{CHECK MARK}"] = SMALL
    location = "/org/name/resolve/main/größe \N{CHECK MARK}".encode().decode("latin-1")
    hub.faults.append(Fault("hub", status=302, headers={"Location": location}))
    assert client.get(_at(hub, "small"), limit=1000).body == SMALL


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://hub", "https://", "https://hub:99999", "https://h\nb"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(Refused, match="HF_ENDPOINT"):
        Client(endpoint)


# Proxies and TLS


def test_a_proxy_of_the_environment_is_used(hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", hub.endpoint.replace("://", "://user:p%40ss@"))
    assert client.get("http://hub.example/org/name/resolve/main/small", limit=1000).body == SMALL
    assert hub.seen[0].headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"  # user:p@ss
    assert hub.seen[0].headers["host"] == "hub.example:80"


def test_a_proxy_is_not_used_where_it_should_not(hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    assert client.get(_at(hub, "small"), limit=1000).body == SMALL


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://", "http://user:secret@[::"])
def test_a_proxy_that_cannot_be_used_is_told(
    hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(Refused, match="HTTP_PROXY") as caught:
        client.get(_at(hub, "small"), limit=1000)
    assert "secret" not in str(caught.value)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(authority, certificate, key): an authority of its own, and a server at 127.0.0.1 that it vouches for."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    paths = (folder / "authority.pem", folder / "cert.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(paths[0])
    server.cert_chain_pems[0].write_to_path(paths[1])
    server.private_key_pem.write_to_path(paths[2])
    return paths


@pytest.fixture
def secure(certificates: tuple[Path, Path, Path]) -> Iterator[Hub]:
    with Hub(tls=certificates[1:]) as served:
        served.add("org/name", {"small": SMALL, "large": SMALL * 100})
        yield served


def test_a_certificate_that_is_not_trusted_is_refused_at_once(secure: Hub, naps: list[float]) -> None:
    client = Client(secure.endpoint, token=TOKEN, sleep=naps.append)
    with pytest.raises(Unreachable, match=r"certificate of 127\.0\.0\.1:\d+ is not trusted here .*SSL_CERT_FILE"):
        client.get(_at(secure, "small"), limit=1000)
    assert (secure.seen, naps) == ([], [])


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_certificate_is_trusted_when_the_environment_says_so(
    secure: Hub, certificates: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(certificates[0]))
    client = Client(secure.endpoint)
    assert client.get(_at(secure, "large"), offset=0, limit=500).body == SMALL
    client.close()


def test_no_redirect_leads_out_of_encryption(
    secure: Hub, hub: Hub, certificates: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates[0]))
    secure.faults.append(Fault("hub", status=302, headers={"Location": _at(hub, "small")}))
    client = Client(secure.endpoint)
    with pytest.raises(Refused, match="unencrypted"):
        client.get(_at(secure, "small"), limit=1000)
    client.close()
    assert hub.seen == []


def test_a_proxy_sees_nothing_of_what_is_encrypted(
    secure: Hub, certificates: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates[0]))
    with Tunnel() as tunnel:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass@{tunnel.address}")
        client = Client(secure.endpoint, token=TOKEN)
        assert client.get(_at(secure, "small"), limit=1000).body == SMALL
        client.close()
        assert tunnel.asked == [(secure.endpoint.removeprefix("https://"), "Basic dXNlcjpwYXNz")]
    assert secure.seen[0].authorization == f"Bearer {TOKEN}"
    assert "proxy-authorization" not in secure.seen[0].headers


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n"])
def test_a_server_that_drips_is_given_up(head: bytes) -> None:
    """Every byte comes in time, the whole never would: a head, or a body, of one byte each tenth of a second."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        connection.recv(4096)
                        connection.sendall(head)
                        while True:
                            connection.sendall(b"x")
                            time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        client = Client(endpoint, timeout=0.2, attempts=2, sleep=lambda _: None)
        with pytest.raises(Unreachable):
            client.get(f"{endpoint}/x", limit=100_000_000)
        client.close()

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from retrieval.errors import PictureError
from retrieval.images import connection
from retrieval.images.addresses import Network
from retrieval.images.fetching import FetchLimits, fetch, fetch_all

from .conftest import Asked, Stranger

LIMITS = FetchLimits(n_bytes=50_000, seconds=20, seconds_in_all=30, n_threads=4)


def test_bytes_arrive_as_they_are_sent(stranger: Stranger, here: Network, png: bytes) -> None:
    stranger.routes["/a.png"] = lambda asked: asked.answer(png)
    assert fetch(stranger.url("/a.png"), LIMITS, network=here) == png
    (asked,) = stranger.asked
    assert asked.headers["Host"] == f"pictures.test:{stranger.port}"
    assert asked.headers["User-Agent"].startswith("voxseek")
    assert asked.headers["Accept-Encoding"] == "identity"


def test_chunks_and_bodies_without_a_length_arrive_too(
    stranger: Stranger, here: Network, png: bytes
) -> None:
    def chunked(asked: Asked) -> None:
        asked.protocol_version = "HTTP/1.1"
        asked.send_response(200)
        asked.send_header("Transfer-Encoding", "chunked")
        asked.end_headers()
        for start in range(0, len(png), 700):
            piece = png[start : start + 700]
            asked.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        asked.wfile.write(b"0\r\n\r\n")
        asked.close_connection = True

    def unmeasured(asked: Asked) -> None:
        asked.send_response(200)
        asked.end_headers()
        asked.wfile.write(png)

    stranger.routes |= {"/chunked": chunked, "/unmeasured": unmeasured}
    for path in stranger.routes:
        assert fetch(stranger.url(path), LIMITS, network=here) == png


def test_paths_outside_ascii_are_escaped_once(
    stranger: Stranger, here: Network, png: bytes
) -> None:
    stranger.routes["/stra%C3%9Fe%20x.png"] = lambda asked: asked.answer(png)
    assert fetch(stranger.url("/straße%20x.png?a=b c"), LIMITS, network=here) == png
    assert stranger.asked[0].path == "/stra%C3%9Fe%20x.png?a=b%20c"


def test_redirects_are_followed_and_judged_at_each_hop(
    stranger: Stranger, here: Network, png: bytes
) -> None:
    stranger.routes |= {
        "/first": lambda asked: asked.redirect("/second"),
        "/second": lambda asked: asked.redirect(stranger.url("/a.png", "elsewhere.test")),
        "/a.png": lambda asked: asked.answer(png),
        "/private": lambda asked: asked.redirect("http://10.0.0.1/a.png"),
        "/metadata": lambda asked: asked.redirect("//169.254.169.254/latest/meta-data"),
        "/file": lambda asked: asked.redirect("file:///etc/passwd"),
        "/loop": lambda asked: asked.redirect("/loop"),
    }
    assert fetch(stranger.url("/first"), LIMITS, network=here) == png
    refused = {
        "/private": ("forbidden address", r"10\.0\.0\.1 resolves to 10\.0\.0\.1"),
        "/metadata": ("forbidden address", r"public addresses alone"),
        "/file": ("bad URL", "no URL of http or https"),
        "/loop": ("too many redirects", "more than 5 times"),
    }
    for path, (reason, message) in refused.items():
        with pytest.raises(PictureError, match=message) as found:
            fetch(stranger.url(path), LIMITS, network=here)
        assert found.value.reason == reason
    assert [asked.path for asked in stranger.asked].count("/loop") == 6


def test_this_machine_is_not_asked_without_permission(stranger: Stranger, png: bytes) -> None:
    stranger.routes["/a.png"] = lambda asked: asked.answer(png)
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"):
        with pytest.raises(PictureError, match="public addresses alone") as found:
            fetch(stranger.url("/a.png", host), LIMITS)
        assert found.value.reason == "forbidden address"
    assert not stranger.asked


def test_a_name_that_resolves_otherwise_a_moment_later_gains_nothing(
    stranger: Stranger, png: bytes
) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    network = Network(
        resolve=lambda host, port: next(answers), permits=lambda address: address == "127.0.0.1"
    )
    stranger.routes["/a.png"] = lambda asked: asked.answer(png)
    assert fetch(stranger.url("/a.png", "rebinds.test"), LIMITS, network=network) == png
    assert stranger.asked[0].headers["Host"] == f"rebinds.test:{stranger.port}"
    with pytest.raises(PictureError, match=r"resolves to 10\.0\.0\.1"):
        fetch(stranger.url("/a.png", "rebinds.test"), LIMITS, network=network)


def test_the_next_address_is_tried_where_one_does_not_answer(
    stranger: Stranger, png: bytes
) -> None:
    stranger.routes["/a.png"] = lambda asked: asked.answer(png)
    network = Network(
        resolve=lambda host, port: ["127.0.0.2", "127.0.0.1"], permits=lambda address: True
    )
    assert fetch(stranger.url("/a.png"), LIMITS, network=network) == png


def _drip(asked: Asked, line: bytes) -> None:
    while not asked.server.is_over.is_set():
        asked.wfile.write(line)
        asked.server.is_over.wait(0.01)


def test_servers_that_drip_run_out_of_time(stranger: Stranger, here: Network) -> None:
    def drip_body(asked: Asked) -> None:
        asked.send_response(200)
        asked.end_headers()
        _drip(asked, b"x")

    def drip_header(asked: Asked) -> None:
        asked.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        _drip(asked, b"x")

    def say_nothing(asked: Asked) -> None:
        asked.server.is_over.wait()

    stranger.routes |= {"/body": drip_body, "/header": drip_header, "/nothing": say_nothing}
    limits = FetchLimits(n_bytes=1 << 30, seconds=0.3)
    for path in stranger.routes:
        with pytest.raises(PictureError, match=r"took more than 0\.3 seconds") as found:
            fetch(stranger.url(path), limits, network=here)
        assert found.value.reason == "out of time"


def test_bodies_beyond_the_limit_are_left(stranger: Stranger, here: Network) -> None:
    def endless(asked: Asked) -> None:
        asked.send_response(200)
        asked.end_headers()
        while not asked.server.is_over.is_set():
            asked.wfile.write(b"x" * 4096)

    def announced(asked: Asked) -> None:
        asked.send_response(200)
        asked.send_header("Content-Length", "50001")
        asked.end_headers()

    stranger.routes |= {
        "/endless": endless,
        "/announced": announced,
        "/fits": lambda asked: asked.answer(b"x" * 50_000),
    }
    for path in ("/endless", "/announced"):
        with pytest.raises(PictureError, match="more than 50000 bytes") as found:
            fetch(stranger.url(path), LIMITS, network=here)
        assert found.value.reason == "too large"
    assert len(fetch(stranger.url("/fits"), LIMITS, network=here)) == 50_000


def test_answers_that_are_no_picture_say_why(stranger: Stranger, here: Network) -> None:
    def cut_off(asked: Asked) -> None:
        asked.send_response(200)
        asked.send_header("Content-Length", "100")
        asked.end_headers()
        asked.wfile.write(b"x" * 99)

    def cut_off_chunk(asked: Asked) -> None:
        asked.protocol_version = "HTTP/1.1"
        asked.send_response(200)
        asked.send_header("Transfer-Encoding", "chunked")
        asked.end_headers()
        asked.wfile.write(b"40\r\nxxx")
        asked.close_connection = True

    stranger.routes |= {
        "/gone": lambda asked: asked.answer(b"gone", 404),
        "/broken": lambda asked: asked.answer(b"", 500),
        "/nowhere": lambda asked: asked.answer(b"", 302),
        "/forbidden": lambda asked: asked.answer(b"x", X_Robots_Tag="noai, noimageai"),
        "/packed": lambda asked: asked.answer(b"x", Content_Encoding="gzip"),
        "/cut": cut_off,
        "/cut_chunk": cut_off_chunk,
        "/noise": lambda asked: asked.wfile.write(b"\x00\x01\x02\r\n\r\n") and None,
        "/silence": lambda asked: None,
    }
    reasons = {}
    for path in stranger.routes:
        with pytest.raises(PictureError, match=str(stranger.port)) as found:
            fetch(stranger.url(path), LIMITS, network=here)
        reasons[path] = found.value.reason
    assert reasons == {
        "/gone": "HTTP 404",
        "/broken": "HTTP 500",
        "/nowhere": "HTTP 302",
        "/forbidden": "X-Robots-Tag noai",
        "/packed": "encoded",
        "/cut": "truncated",
        "/cut_chunk": "truncated",
        "/noise": "not HTTP",
        "/silence": "not HTTP",
    }


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.png",
        "ftp://pictures.test/a.png",
        "file:///etc/passwd",
        "http://",
        "http://pictures.test:99999/",
        "http://[::1/",
        f"http://{'x' * 70}.test/",
    ],
)
def test_what_is_no_url_of_http_is_refused(url: str, here: Network) -> None:
    with pytest.raises(PictureError, match="no URL") as found:
        fetch(url, LIMITS, network=here)
    assert found.value.reason == "bad URL"


def test_no_header_can_be_written_into_a_url(stranger: Stranger, here: Network) -> None:
    stranger.routes["/a%0D%0AX-Evil:%201"] = lambda asked: asked.answer(b"x")
    fetch(stranger.url("/a%0D%0AX-Evil:%201"), LIMITS, network=here)
    assert "X-Evil" not in stranger.asked[0].headers


def test_a_closed_port_is_no_connection(stranger: Stranger, here: Network) -> None:
    url = f"https://pictures.test:{stranger.port}/a.png"
    with pytest.raises(PictureError, match=r"pictures\.test") as found:
        fetch(url, LIMITS, network=here)  # Plain HTTP where TLS is expected.
    assert found.value.reason == "no secure connection"
    elsewhere = Network(resolve=lambda host, port: ["127.0.0.3"], permits=lambda address: True)
    with pytest.raises(PictureError, match="refused") as found:
        fetch(stranger.url("/a.png"), LIMITS, network=elsewhere)
    assert found.value.reason == "no connection"


def test_all_come_in_the_order_asked_with_their_reasons(
    stranger: Stranger, here: Network, png: bytes
) -> None:
    stranger.routes |= {
        "/a.png": lambda asked: asked.answer(png),
        "/gone": lambda asked: asked.answer(b"", 410),
    }
    paths = ["/a.png", "/gone"] * 6
    found = fetch_all([stranger.url(path) for path in paths], LIMITS, network=here)
    assert [each if isinstance(each, bytes) else each.reason for each in found] == [
        png,
        "HTTP 410",
    ] * 6
    assert fetch_all([], LIMITS, network=here) == []


def test_pictures_of_a_query_share_their_time(stranger: Stranger, here: Network) -> None:
    stranger.routes["/nothing"] = lambda asked: asked.server.is_over.wait() and None
    limits = FetchLimits(seconds=60, seconds_in_all=0.4, n_threads=2)
    found = fetch_all([stranger.url("/nothing")] * 5, limits, network=here)
    assert [each.reason for each in found if isinstance(each, PictureError)] == ["out of time"] * 5
    assert "was not asked for" in str(found[-1])


@pytest.mark.parametrize("field", ["n_bytes", "seconds", "seconds_in_all", "n_threads"])
def test_limits_are_above_zero(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is 0, expected above 0"):
        FetchLimits(**{field: 0})
    with pytest.raises(ValueError, match="n_redirects is -1"):
        FetchLimits(n_redirects=-1)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of pictures.test with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path / "certificate.pem"
    command = (
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=pictures.test -addext subjectAltName=DNS:pictures.test "
        f"-keyout {path}.key -out {path}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return path


def test_a_certificate_must_name_the_host_though_its_address_is_connected_to(
    stranger: Stranger,
    here: Network,
    png: bytes,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    asked_for: list[str] = []
    context.sni_callback = lambda used, name, _: asked_for.append(name)
    stranger.socket = context.wrap_socket(
        stranger.socket, server_side=True, do_handshake_on_connect=False
    )
    stranger.routes["/a.png"] = lambda asked: asked.answer(png)
    monkeypatch.setattr(
        connection, "_tls", lambda: ssl.create_default_context(cafile=str(certificate))
    )
    url = f"https://pictures.test:{stranger.port}/a.png"
    assert fetch(url, LIMITS, network=here) == png
    assert asked_for == ["pictures.test"]
    with pytest.raises(PictureError, match=r"not valid for 'other\.test'") as found:
        fetch(url.replace("pictures", "other"), LIMITS, network=here)
    assert found.value.reason == "no secure connection"

"""Who is answered: by which name, from which page, with which key; and what every response has."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from jmedlite.base.errors import DataError, InputMissing, UsageError
from jmedlite.serve.guard import PAGE, own_names
from jmedlite.serve.options import ServeOptions
from jmedlite.serve.run import address_of, check_certificate, read_key
from tests.support.commands import run_text
from tests.support.serving import FakeRunner, client_of

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "q"}]}
KEY = "a-key-of-the-house-1234"


@pytest.fixture(scope="module")
def client() -> TestClient:
    return client_of(FakeRunner())


@pytest.fixture(scope="module")
def locked() -> TestClient:
    return client_of(FakeRunner(), key=KEY)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "testserver.evil.example", "[::2]", "[", "", "a b"]
)
@pytest.mark.parametrize("path", ["/", "/api/info", CHAT])
def test_another_name_is_refused(client: TestClient, host: str, path: str) -> None:
    """A foreign page may let a name of its own point here, and would read every answer."""
    answer = client.request("POST" if path == CHAT else "GET", path, json=ASK, headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:8080"}, 200),
        ({"Host": "TESTSERVER", "Origin": "http://testserver"}, 200),
        ({"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://testserver:81"}, 403),
        ({"Origin": "http://testserver.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_another_page_may_not_ask(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.post(CHAT, json=ASK, headers=headers).status_code == status


def test_the_page_may_be_linked_to(client: TestClient) -> None:
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200
    assert client.get("/api/info", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


@pytest.mark.parametrize("path", ["/api/info", "/v1/models", CHAT, "/v1/completions", "/nothing"])
def test_a_key_is_needed_for_all_but_the_page(locked: TestClient, path: str) -> None:
    method = "POST" if "completions" in path else "GET"
    for given in (None, "", KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer ｋ"):
        headers = {} if given is None else {"Authorization": given.encode()}
        answer = locked.request(method, path, json=ASK, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert KEY not in answer.text
    for given in (f"Bearer {KEY}", f"bearer  {KEY}"):
        assert locked.request(method, path, json=ASK, headers={"Authorization": given}).status_code != 401


def test_every_response_is_protected(client: TestClient, locked: TestClient) -> None:
    answers = [client.get(path) for path in (*PAGE, "/health", "/api/info", "/v1/models", "/nothing", CHAT)]
    answers += [locked.get("/api/info"), client.get("/", headers={"Host": "x"}), client.post(CHAT, json={})]
    answers.append(client.post(CHAT, json={**ASK, "stream": True}))
    assert {a.status_code for a in answers} == {200, 400, 401, 403, 404, 405}
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    assert client.options(CHAT, headers={"Origin": "http://evil.example"}).status_code == 403


def test_the_page_has_all_that_it_names_and_nothing_from_elsewhere(locked: TestClient) -> None:
    page = locked.get("/").text
    named = re.findall(r'(?:src|href)="(/[^"]+)"', page)
    assert {"/page.css", "/page.js", "/icon.svg"} <= set(named) <= set(PAGE)
    for path in PAGE:
        text = locked.get(path).text
        assert not re.search(r"(?:src|href|url|from|import)\W{1,3}(?:https?:)?//", text)
        assert not re.search(r"\bon\w+=|\bstyle=|<style|javascript:|innerHTML|eval\(", text)
    kinds = {path: locked.get(path).headers["content-type"].partition(";")[0] for path in PAGE}
    assert kinds["/page.js"] == "text/javascript"
    assert kinds["/icon.svg"] == "image/svg+xml"


def test_addresses_of_the_network_need_encryption(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.168.0.2", "::", "ward.example"):
        with pytest.raises(UsageError, match="would cross the network unencrypted; give --tls-cert and --tls-key"):
            ServeOptions(host=host)
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert read_key(ServeOptions(host=host)) == (None, False)
    with pytest.raises(UsageError, match="give both"):
        ServeOptions(tls_cert="c.pem")
    keys = [read_key(ServeOptions(host=h, behind_proxy=True)) for h in ("0.0.0.0", "127.0.0.1", "0.0.0.0")]
    assert all(made and key and len(key) >= 32 for key, made in keys)
    assert len({key for key, _ in keys}) == 3
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_key(ServeOptions(key_file=str(file))) == (KEY, False)
    for bad in ("short", "ｋ" * 20, "two words of a key file", ""):
        file.write_text(bad)
        with pytest.raises(DataError, match="is no key"):
            read_key(ServeOptions(key_file=str(file)))
    with pytest.raises(InputMissing):
        read_key(ServeOptions(key_file=str(tmp_path / "none")))


def test_names_of_this_server() -> None:
    assert own_names(ServeOptions(allow_host=("Ward.Example",))) == {"127.0.0.1", "localhost", "::1", "ward.example"}
    many = own_names(ServeOptions(host="0.0.0.0", behind_proxy=True))
    assert len(many) > 5
    assert address_of(ServeOptions(host="::1"), 80) == "http://[::1]:80/"
    assert "0.0.0.0" not in address_of(ServeOptions(host="0.0.0.0", behind_proxy=True), 80)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates by the program openssl")
def test_certificates_are_looked_at_before_a_model_is_loaded(tmp_path: Path) -> None:
    cert, key, locked = (str(tmp_path / n) for n in ("cert.pem", "key.pem", "locked.pem"))
    making = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-subj",
        "/CN=localhost",
    ]
    subprocess.run([*making, "-nodes", "-out", cert, "-keyout", key], check=True, capture_output=True)
    with_password = ["openssl", "ec", "-in", key, "-out", locked, "-aes128", "-passout", "pass:word"]
    subprocess.run(with_password, check=True, capture_output=True)
    check_certificate(ServeOptions(host="0.0.0.0", tls_cert=cert, tls_key=key))
    for bad in (locked, cert):
        with pytest.raises(DataError, match="both PEM and without a password"):
            check_certificate(ServeOptions(tls_cert=cert, tls_key=bad))
    with pytest.raises(InputMissing, match="no such file"):
        check_certificate(ServeOptions(tls_cert=cert, tls_key=str(tmp_path / "none")))
    assert ssl.PEM_cert_to_DER_cert(Path(cert).read_text())


def test_the_command_says_what_is_wrong(tiny_gguf: Path) -> None:
    for arguments, code, words in (
        (["--host", "0.0.0.0"], 2, "--host 0.0.0.0: questions would cross the network unencrypted"),
        (["--host", "no.such.name.invalid", "--behind-proxy"], 73, "can't be listened on"),
        (["--parallel", "0"], 2, "--parallel"),
        (["--key-file", "none"], 66, "none"),
        (["-m", "other.gguf"], 2, "two models"),
    ):
        done = run_text("serve", str(tiny_gguf), *arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert words in done.stderr

"""Hub ids against a local server that speaks the Hub's protocol: pinned, only what is needed, resumable, offline."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest

from jmedlite.base.errors import NotPermitted, Unavailable
from jmedlite.base.hub import _faults, parse_id, resolve
from tests.support import builders
from tests.support.hub import hub_environment
from tests.support.warm import run_command

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "owner/tiny-model"


class FakeHub:
    """Serves one model folder; `mode` is how it misbehaves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mode = folder, "good"
        self.requests: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None: ...

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, to: BaseHTTPRequestHandler, body: bool) -> None:
        path = unquote(to.path.partition("?")[0])
        self.requests.append((to.command, path, to.headers.get("Range")))
        files = {str(f.relative_to(self.folder)): f for f in self.folder.rglob("*") if f.is_file()}
        if self.mode == "refused":
            return self.send(to, 403, b"{}", {"X-Error-Message": "Please enable gated repositories."}, body)
        if self.mode in ("silent", "drip"):
            return self.stall(to)
        if self.mode == "html":
            return self.send(to, 200, b"<html>please log in</html>", {"Content-Type": "text/html"}, body)
        if path.startswith("/api/models/" + REPO):
            if "/tree/" in path:
                tree = [
                    {"type": "file", "path": n, "size": f.stat().st_size, "oid": "0" * 40} for n, f in files.items()
                ]
                return self.send(to, 200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
            found = {
                "id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0,
                "siblings": [{"rfilename": n, "size": f.stat().st_size} | self.lfs(f) for n, f in files.items()],
            }  # fmt: skip
            return self.send(to, 200, json.dumps(found).encode(), {"Content-Type": "application/json"}, body)
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        if path.startswith(prefix) and path.removeprefix(prefix) in files:
            return self.send_file(to, files[path.removeprefix(prefix)], body)
        self.send(to, 404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, body)

    def stall(self, to: BaseHTTPRequestHandler) -> None:
        """Nothing, or a byte now and then, until the other side has enough."""
        with contextlib.suppress(OSError):
            if self.mode == "drip":
                to.send_response(200)
                to.send_header("Content-Length", "1000000")
                to.end_headers()
            for _ in range(1000):
                threading.Event().wait(0.05)
                to.wfile.write(b" " * (self.mode == "drip"))
        to.close_connection = True

    @staticmethod
    def lfs(file: Path) -> dict[str, Any]:
        if file.suffix != ".safetensors":
            return {}
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        return {"lfs": {"sha256": sha256, "size": file.stat().st_size, "pointerSize": 134}}

    def send_file(self, to: BaseHTTPRequestHandler, file: Path, body: bool) -> None:
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        if self.mode == "tampered" and file.suffix == ".safetensors":
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = 0
        if found := re.fullmatch(r"bytes=(\d+)-.*", to.headers.get("Range") or ""):
            start = int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        part = data[start:]
        if self.mode == "cut" and body and file.suffix == ".safetensors" and start == 0:
            part_sent = part[: len(part) // 2]
            to.send_response(200)
            for key, value in (headers | {"Content-Length": str(len(part))}).items():
                to.send_header(key, value)
            to.end_headers()
            to.wfile.write(part_sent)
            to.wfile.flush()
            to.close_connection = True
            to.connection.close()
            return
        self.send(to, 206 if start else 200, part, headers, body)

    @staticmethod
    def send(to: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        to.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            to.send_header(key, value)
        to.end_headers()
        if body:
            to.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = tmp_path / "served"
    builders.checkpoint(folder, shards=2)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.safetensors").write_bytes(b"not wanted")
    server = FakeHub(folder)
    yield server
    server.server.shutdown()
    server.server.server_close()


def run(tmp_path: Path, hub: FakeHub, model: str = REPO, **env: str) -> subprocess.CompletedProcess[str]:
    out = str(tmp_path / "out")
    arguments = ["quantize", model, "--bits", "8", "--out", out, "--overwrite"]
    return run_command(arguments, hub_environment(hub.url, tmp_path, **env), Path.cwd())


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("jmedlite: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_download_pins_the_commit_and_takes_only_what_is_needed(tmp_path: Path, hub: FakeHub) -> None:
    done = run(tmp_path, hub)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "tiny-model-Q8_0.json").read_text())
    shards = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in hub.folder.glob("model-*.safetensors")}
    assert manifest["base"] == {"name": "tiny-model", "repo": REPO, "revision": COMMIT, "files": shards}
    assert manifest["license"] == "apache-2.0"
    fetched = {path.rpartition("/")[2] for verb, path, _ in hub.requests if verb == "GET" and "/resolve/" in path}
    assert "model-00001-of-00002.safetensors" in fetched
    assert not fetched & {"pytorch_model.bin", "consolidated.safetensors"}
    # the cache alone is enough, and nothing is asked of the network
    asked = len(hub.requests)
    again = run(tmp_path, hub, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "tiny-model-Q8_0.json").read_text()) == manifest
    assert len(hub.requests) == asked


@pytest.mark.long
def test_a_cut_download_goes_on(tmp_path: Path, hub: FakeHub) -> None:
    hub.mode = "cut"
    builders.checkpoint(hub.folder, shards=2, vocab_size=50_000)  # huggingface_hub keeps what came in steps of 10 MiB
    done = run(tmp_path, hub)
    if done.returncode:  # the library gave up: what came is kept, the next run asks for the rest
        assert done.returncode == 69, done.stderr
        one_line(done)
        assert not list((tmp_path / "out").glob("*.gguf"))
        hub.mode = "good"
        done = run(tmp_path, hub)
    assert done.returncode == 0, done.stderr
    assert any(span and not span.startswith("bytes=0-") for _, path, span in hub.requests if path.endswith("tensors"))


def test_a_page_instead_of_the_hub(tmp_path: Path, hub: FakeHub) -> None:
    hub.mode = "html"
    done = run(tmp_path, hub)
    assert done.returncode == 69, done.stderr
    assert REPO in one_line(done)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("mode", ["silent", "drip"])
def test_a_hub_that_stalls_is_left_alone(
    tmp_path: Path, hub: FakeHub, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its own, huggingface_hub's client waits for ever."""
    hub.mode = mode
    client = huggingface_hub.get_session()
    hooks = client.event_hooks
    for name, value in (("HF_HUB_DOWNLOAD_TIMEOUT", 0.2), ("ENDPOINT", hub.url), ("HF_HUB_CACHE", str(tmp_path / "c"))):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    started = time.monotonic()
    with pytest.raises(Unavailable, match="can't be reached"):
        resolve(REPO)
    assert time.monotonic() - started < 10
    assert client.event_hooks == hooks


def test_tampered_weights_are_not_kept(tmp_path: Path, hub: FakeHub) -> None:
    hub.mode = "tampered"
    done = run(tmp_path, hub)
    assert done.returncode == 69, done.stderr
    assert "SHA-256" in one_line(done)
    assert not list((tmp_path / "out").glob("*"))
    hub.mode = "good"
    done = run(tmp_path, hub)
    assert done.returncode == 0, done.stderr


def test_a_token_without_the_right(tmp_path: Path, hub: FakeHub) -> None:
    hub.mode = "refused"
    done = run(tmp_path, hub)
    assert done.returncode == 77, done.stderr
    assert all(word in one_line(done) for word in ("403: Please enable gated", "HF_TOKEN", "hf auth login"))


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(401, NotPermitted, ["accept the token", "401: why", "HF_TOKEN"]), (503, Unavailable, ["503: why", "try again"])],
)
def test_what_the_hub_answered_is_told(status: int, kind: type[Exception], words: list[str]) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    answer = OSError("no")
    answer.response = SimpleNamespace(status_code=status, headers={"X-Error-Message": "why"})  # type: ignore[attr-defined]
    with pytest.raises(kind) as caught, _faults(REPO, None, "model"):
        raise LocalEntryNotFoundError("not in the cache") from answer
    assert all(word in str(caught.value) for word in (REPO, *words))


def test_shards_are_those_of_the_index(tmp_path: Path, hub: FakeHub) -> None:
    """The names that some savers give; nothing else of the repository, and nothing outside it."""
    index = hub.folder / "model.safetensors.index.json"
    text = index.read_text()
    for k in (1, 2):
        old, new = f"model-0000{k}-of-00002.safetensors", f"weights [{k}].safetensors"
        (hub.folder / old).rename(hub.folder / new)
        text = text.replace(old, new)
    index.write_text(text)
    (hub.folder / "model-00001-of-00009.safetensors").write_bytes(b"not wanted")
    done = run(tmp_path, hub)
    assert done.returncode == 0, done.stderr
    assert not [path for _, path, _ in hub.requests if path.endswith("00009.safetensors")]


def test_no_such_model(tmp_path: Path, hub: FakeHub) -> None:
    done = run(tmp_path, hub, model="owner/other")
    assert done.returncode == 66, done.stderr
    assert "owner/other" in one_line(done)


def test_offline_without_a_cache(tmp_path: Path, hub: FakeHub) -> None:
    done = run(tmp_path, hub, HF_HUB_OFFLINE="1")
    assert done.returncode == 69, done.stderr
    assert "cache" in one_line(done)
    assert not hub.requests


def test_hub_away(tmp_path: Path, hub: FakeHub) -> None:
    done = run(tmp_path, hub, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 69, done.stderr
    one_line(done)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1")),
        ("name", None),
        ("a/b/c", None),
    ],
)
def test_ids(text: str, parsed: tuple[str, str | None] | None) -> None:
    assert parse_id(text) == parsed


@pytest.mark.long
def test_model_that_has_only_bin_files(tmp_path: Path, hub: FakeHub) -> None:
    """OpenCALM-7B's kind: the second look at the Hub takes the .bin files; offline, the cache has them."""
    from tests.support.torch_files import as_bin

    (hub.folder / "pytorch_model.bin").unlink()
    as_bin(hub.folder, builders.weights(json.loads((hub.folder / "config.json").read_text())), shards=2)
    done = run(tmp_path, hub)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "tiny-model-Q8_0.json").read_text())
    assert sorted(manifest["base"]["files"]) == [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    asked = len(hub.requests)
    assert run(tmp_path, hub, HF_HUB_OFFLINE="1").returncode == 0
    assert len(hub.requests) == asked

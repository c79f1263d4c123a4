"""HTTP to an OpenAI-compatible server: one request, tried again where that helps, its faults in a sentence each."""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from typing import IO, Any
from urllib.parse import urlsplit

from jmedlite.base.errors import DataError, JmedliteError, NotPermitted, Unavailable, UsageError
from jmedlite.base.halves import has_halves, without_halves
from jmedlite.base.progress import Notice, silent
from jmedlite.base.wording import shown

TRIES = 6
FIRST_PAUSE = 0.5  # seconds, doubled each time: about 15 s in all
LONGEST_PAUSE = 30.0  # whatever Retry-After asks for
LOADING_SECONDS = 900.0  # for a server that loads its model
MAX_ANSWER = 64 << 20
MAX_COUNT = 1 << 31  # tokens; more than that no server means
MAX_TOLD = 200  # characters of a server's own words
TOO_LONG = re.compile(r"context (length|size|window)|maximum model length|max_model_len|too long|too many tokens", re.I)
N_PROMPT = re.compile(
    r"(\d+) in the (?:messages|prompt)|(\d+) input tokens|\(length (\d+)\) is longer|request \((\d+) tokens", re.I
)


class Refused(DataError):
    """The server refuses a request: `words` are its own."""

    def __init__(self, message: str, words: str, error: dict[str, Any]) -> None:
        super().__init__(message)
        self.words, self.error = words, error

    @property
    def is_too_long(self) -> bool:
        """Whether it is because the prompt has more tokens than the context."""
        return self.error.get("type") == "exceed_context_size_error" or bool(TOO_LONG.search(self.words))

    @property
    def n_prompt(self) -> int | None:
        """How many tokens the prompt has, where the server says so."""
        n = self.error.get("n_prompt_tokens")
        if type(n) is not int and (found := N_PROMPT.search(self.words)):
            n = int(next(group for group in found.groups() if group))
        return n if type(n) is int and 0 <= n < MAX_COUNT else None


class Failed(Unavailable):
    """The server is there and says that it failed, however often it was asked."""


class _Timed(socket.socket):
    """A socket whose reads are over at `deadline` all together: a timeout is for each, and a drip never meets it."""

    deadline: float | None = None

    def recv_into(self, *args: Any) -> int:
        if self.deadline is not None:
            if (left := self.deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self.settimeout(left)
        return super().recv_into(*args)


class _TimedTls(_Timed, ssl.SSLSocket):
    """The same, encrypted."""


class _Connection(http.client.HTTPConnection):
    """One exchange, from the connection to the answer's last byte, within its timeout."""

    def connect(self) -> None:
        deadline = time.monotonic() + (self.timeout or 0)
        super().connect()
        self.sock = _Timed(fileno=self.sock.detach())
        self.sock.settimeout(self.timeout)
        self.sock.deadline = deadline


class _TlsConnection(http.client.HTTPSConnection):
    """The same, encrypted; its context makes the sockets."""

    def connect(self) -> None:
        deadline = time.monotonic() + (self.timeout or 0)
        super().connect()
        assert isinstance(self.sock, _TimedTls)
        self.sock.deadline = deadline


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        context.sslsocket_class = _TimedTls
        return self.do_open(_TlsConnection, req, context=context)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Questions and the key go to the address that was given, and nowhere else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def is_this_machine(host: str) -> bool:
    """Whether an address never leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Server:
    """The server at `url`, with or without `/v1`. Threads may share it."""

    def __init__(self, url: str, api_key: str | None, timeout: float, notice: Notice = silent) -> None:
        parts = urlsplit(url if "://" in url else f"//{url}")
        try:
            known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
            known = known and parts.path.isascii() and parts.path.isprintable() and " " not in parts.path
        except ValueError:
            known = False
        if not known or parts.query or parts.fragment:
            raise UsageError(f"--endpoint {url}: is no address of a server; give one such as http://127.0.0.1:8080")
        if parts.username or parts.password:
            raise UsageError("--endpoint: has a name or password in it; put the key into JMEDLITE_API_KEY instead")
        path = re.sub(r"(/v1)?(/(chat/)?completions|/models)?/*$", "", parts.path)
        self.host = str(parts.hostname)
        self.root = f"{parts.scheme}://{parts.netloc}{path}"
        self.base = f"{self.root}/v1"
        self.is_open = parts.scheme == "http" and not is_this_machine(self.host)  # others can read along
        self.timeout, self._notice = timeout, notice
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable()):
                raise UsageError("JMEDLITE_API_KEY: holds what no key holds (a line's end, or a letter beyond ASCII)")
            self._headers["Authorization"] = f"Bearer {api_key}"
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect(), _Http(), _Https()]
        if is_this_machine(self.host):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)
        self.reached = self._told_of_loading = False

    def get(self, path: str) -> dict[str, Any]:
        """What is at `path` (from the server's root)."""
        return self._ask(self.root + path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to `body` at `path` (below /v1); Refused where the server does not take it."""
        return self._ask(f"{self.base}{path}", json.dumps(body, ensure_ascii=False).encode("utf-8"))

    def _ask(self, url: str, body: bytes | None) -> dict[str, Any]:
        pause, left, until = FIRST_PAUSE, TRIES - 1, time.monotonic() + LOADING_SECONDS
        n_late = 0
        while True:
            wait = pause
            try:
                request = urllib.request.Request(url, body, self._headers)
                with self._opener.open(request, timeout=self.timeout) as response:
                    self.reached = True
                    found = self._read(url, response)
                if "error" not in found or found.keys() & {"choices", "data"}:
                    return found
                fault, again = self._fault(url, 200, *_words_of(found), None)
            except urllib.error.HTTPError as e:
                self.reached = True
                with e:
                    error, words = _words(e)
                    fault, again = self._fault(url, e.code, error, words, e.headers.get("Location"))
                    wait = _asked_for(e.headers.get("Retry-After")) or pause
                if e.code == 503 and "loading" in words.lower() and time.monotonic() < until:
                    if self._loading_is_new():
                        self._notice(f"{self.root}: is loading its model; waiting for it")
                    time.sleep(min(wait, 2.0))
                    continue
            except (OSError, http.client.HTTPException, ValueError) as e:  # ValueError: a length that is none
                fault = self._no_answer(url, e)
                n_late += isinstance(fault, Failed)
                again = self.reached and n_late < 2  # never reached: the address is wrong, most likely
            if not left or not again:
                raise fault
            left -= 1
            time.sleep(min(wait, LONGEST_PAUSE))
            pause *= 2

    def _loading_is_new(self) -> bool:
        first, self._told_of_loading = not self._told_of_loading, True
        return first

    @staticmethod
    def _read(url: str, response: IO[bytes]) -> dict[str, Any]:
        raw = response.read(MAX_ANSWER + 1)
        if len(raw) > MAX_ANSWER:
            raise DataError(f"{url}: answered with more than {MAX_ANSWER >> 20} MB")
        found = _parsed(raw)
        if not isinstance(found, dict):
            begins = raw[:40].decode("utf-8", "replace").split("\n")[0]
            raise DataError(
                f"{url}: answered with {begins!r}, not with a JSON object; is it an OpenAI-compatible server?"
            )
        return found

    def _no_answer(self, url: str, error: Exception) -> Unavailable:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            late = Failed if self.reached else Unavailable
            return late(f"{url}: gave no answer within {self.timeout:g} s; is the server overloaded?")
        why = getattr(reason, "strerror", None) or getattr(reason, "verify_message", None) or type(reason).__name__
        return Unavailable(f"{url}: can't be reached ({why}); is the server running, and the address right?")

    @staticmethod
    def _fault(
        url: str, code: int, error: dict[str, Any], words: str, location: str | None
    ) -> tuple[JmedliteError, bool]:
        """(the exception for an answer with this status, whether it helps to ask again).

        Gateways answer 200 and put the status of what failed behind them into the error.
        """
        if code == 200:
            code = error["code"] if isinstance(error.get("code"), int) and error["code"] >= 400 else 500
        said = f"{code}: {words}" if words else str(code)
        if code in (401, 403):
            return NotPermitted(f"{url}: refuses access ({said}); set JMEDLITE_API_KEY to a key that it takes"), False
        if code == 404:
            return Unavailable(f"{url}: is not there ({said}); is it an OpenAI-compatible server's address?"), False
        if 300 <= code < 400:
            to = (location or "elsewhere")[:MAX_TOLD]
            return UsageError(f"{url}: sends on to {to}; give that server's address if you trust it"), False
        if (code == 429 or code >= 500) and not re.search(r"\becho\b|not supported|unsupported", words, re.I):
            return Failed(f"{url}: does not answer ({said}); run again later, it goes on where it stopped"), True
        return Refused(f"{url}: refuses the request ({said})", words, error), False


def _words(response: urllib.error.HTTPError) -> tuple[dict[str, Any], str]:
    """(the error object, its message) of llama-server's, vLLM's and OpenAI's error answers."""
    try:
        return _words_of(_parsed(response.read(1 << 20)))
    except (ValueError, OSError, http.client.HTTPException):
        return {}, ""


def _parsed(raw: bytes) -> Any:
    """An answer's JSON, None where it is none; a token may end in half a character."""
    try:
        found = json.loads(raw)
        return without_halves(found) if has_halves(raw, found) else found
    except (ValueError, RecursionError):
        return None


def _words_of(found: Any) -> tuple[dict[str, Any], str]:
    """The same of the answer's JSON."""
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        error = {"message": error}
    words = error.get("message") or error.get("detail") or ""
    if isinstance(words, list):  # FastAPI's: one object for each field
        words = "; ".join(shown(w.get("msg")).strip("'") for w in words[:4] if isinstance(w, dict))
    if not isinstance(words, str):
        words = shown(words)
    # what follows "input" is the request, with the question
    return error, " ".join(words.partition("'input'")[0].split())[:MAX_TOLD]


def _asked_for(seconds: str | None) -> float | None:
    """The pause that a server asks for."""
    return float(seconds) if seconds and seconds.isascii() and seconds.strip().isdigit() else None

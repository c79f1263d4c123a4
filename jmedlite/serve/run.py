"""Running the server: the model loaded, the key, the address, and uvicorn until somebody ends it."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from jmedlite.base.errors import CannotCreate, DataError, InputMissing
from jmedlite.base.inputs import read_text
from jmedlite.base.looking import is_file
from jmedlite.runtime.chat_template import NOTICE, SYSTEM
from jmedlite.runtime.load_options import LoadOptions
from jmedlite.runtime.shared_runner import SharedRunner

from .answering import Answers
from .app import About, make_app
from .guard import own_names
from .options import ServeOptions

MAX_KEY, MIN_KEY = 4096, 16  # characters
MAX_CONNECTIONS = 512
EVERY_ADDRESS = ("0.0.0.0", "::")
HEAD_SECONDS = 15.0  # for a request's head to arrive in, and between requests
UNREAD_SECONDS = 60  # after which whoever reads nothing is dropped
ENDING_SECONDS = 3  # for answers that are being given when the server ends


class Impatient(H11Protocol):
    """HTTP that drops who opens a connection and then says nothing: 512 of those, and nobody else would be heard."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and self._clock:
            self._clock.cancel()
            self._clock = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._clock:
            self._clock.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(HEAD_SECONDS, self._drop)

    def _drop(self) -> None:
        self._clock = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()


def read_key(options: ServeOptions) -> tuple[str | None, bool]:
    """(the key that requests must have, whether it was made here); no key where only this machine can ask."""
    if options.key_file is not None:
        key = read_text(Path(options.key_file), MAX_KEY).strip()
        if len(key) < MIN_KEY or not key.isascii() or any(c.isspace() for c in key):
            raise DataError(f"{options.key_file}: is no key; expected {MIN_KEY} or more letters and digits in one line")
        return key, False
    return (None, False) if options.is_local and not options.behind_proxy else (secrets.token_urlsafe(24), True)


def check_certificate(options: ServeOptions) -> None:
    """Raise DataError or InputMissing where the certificate can't be used, before a model is loaded for minutes."""
    if options.tls_cert is None or options.tls_key is None:
        return
    for file in (options.tls_cert, options.tls_key):
        if not is_file(Path(file)):
            raise InputMissing(f"{file}: no such file; expected a certificate and its private key, both PEM")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            options.tls_cert,
            options.tls_key,
            password="",  # or it would be asked for
        )
    except (OSError, ValueError) as e:  # ssl.SSLError is the first
        why = getattr(e, "reason", None) or e
        raise DataError(
            f"--tls-cert {options.tls_cert} --tls-key {options.tls_key}: are no certificate and its private key, both "
            f"PEM and without a password ({why})"
        ) from None


def serve(
    model: Path,
    options: ServeOptions,
    loading: LoadOptions,
    *,
    more: Mapping[str, Any],
    on_plan: Callable[[str], None],
    on_start: Callable[[str, str | None], None],
) -> None:
    """Serve a model until the process is ended.

    `more` are facts for the page (level, verdict); `on_start` hears the page's address, and the key where it was made
    here. Raises CannotCreate where the address is taken, and what loading a model raises.
    """
    key, made = read_key(options)
    check_certificate(options)
    listening = listen(options)
    with listening, SharedRunner(model, loading, lanes=options.parallel, on_plan=on_plan) as runner:
        about = About(model.stem, {**about_model(runner, model), **more})
        answers = Answers(runner, options.queue)
        app = make_app(answers, about, own_names(options), key)
        on_start(address_of(options, listening.getsockname()[1]), key if made else None)
        server_of(app, answers, options).run(sockets=[listening])


class Server(uvicorn.Server):
    """uvicorn, which ends on SIGINT and SIGTERM: answers end then where they are."""

    def __init__(self, config: uvicorn.Config, answers: Answers) -> None:
        super().__init__(config)
        self._answers = answers

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._answers.end_all()
        await super().shutdown(sockets)


def server_of(app: Starlette, answers: Answers, options: ServeOptions) -> Server:
    """The server of an application: it logs no request, and nothing of what fails in one but for whoever debugs."""
    config = uvicorn.Config(
        app,
        log_level="error" if os.environ.get("JMEDLITE_DEBUG") else "critical",
        access_log=False,
        server_header=False,
        http=Impatient,
        ws="none",
        timeout_keep_alive=int(HEAD_SECONDS),
        timeout_graceful_shutdown=ENDING_SECONDS,
        limit_concurrency=MAX_CONNECTIONS,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        proxy_headers=False,
        lifespan="off",
    )
    return Server(config, answers)


def address_of(options: ServeOptions, port: int) -> str:
    """Where the page is found; behind an address that stands for all of this machine's, by its name."""
    host = socket.gethostname() if options.host in EVERY_ADDRESS else options.host
    return f"{'https' if options.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


def listen(options: ServeOptions) -> socket.socket:
    """The socket; raises CannotCreate where it can't be had."""
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((options.host, options.port), family=family, backlog=128)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have what the listening socket has
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
        return listening
    except OSError as e:
        raise CannotCreate(
            f"--host {options.host} --port {options.port}: can't be listened on ({e.strerror or e}); is another server "
            "running there? choose another --port"
        ) from None


def about_model(runner: SharedRunner, model: Path) -> dict[str, Any]:
    """What the page shows of the model."""
    facts = runner.facts
    return {
        "file": model.name,
        "title": facts["name"],
        "license": facts["license"],
        "n_ctx": facts["n_ctx"],
        "n_ctx_train": facts["n_ctx_train"],
        "notice": NOTICE,
        "system": SYSTEM,
        "started": int(time.time()),
        "plan": runner.plan["sentence"],
    }

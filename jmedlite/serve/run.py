"""Running the server: the model loaded, the key, the address, and uvicorn until somebody ends it."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn

from jmedlite.base.errors import CannotCreate, DataError
from jmedlite.base.inputs import read_text
from jmedlite.runtime.chat_template import NOTICE, SYSTEM
from jmedlite.runtime.load_options import LoadOptions
from jmedlite.runtime.shared_runner import SharedRunner

from .answering import Answers
from .app import About, make_app
from .guard import own_names
from .options import ServeOptions

MAX_KEY, MIN_KEY = 4096, 16  # characters
MAX_CONNECTIONS = 512


def read_key(options: ServeOptions) -> tuple[str | None, bool]:
    """(the key that requests must have, whether it was made here); no key where only this machine can ask."""
    if options.key_file is not None:
        key = read_text(Path(options.key_file), MAX_KEY).strip()
        if len(key) < MIN_KEY or not key.isascii() or any(c.isspace() for c in key):
            raise DataError(f"{options.key_file}: is no key; expected {MIN_KEY} or more letters and digits in one line")
        return key, False
    return (None, False) if options.is_local and not options.behind_proxy else (secrets.token_urlsafe(24), True)


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
    listening = _listen(options)
    with listening, SharedRunner(model, loading, lanes=options.parallel, on_plan=on_plan) as runner:
        about = About(model.stem, {**about_model(runner, model), **more})
        app = make_app(Answers(runner, options.queue), about, own_names(options), key)
        config = uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=3,
            limit_concurrency=MAX_CONNECTIONS,
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
            proxy_headers=False,
            lifespan="off",
        )
        scheme = "https" if options.tls_cert else "http"
        host = f"[{options.host}]" if ":" in options.host else options.host
        on_start(f"{scheme}://{host}:{listening.getsockname()[1]}/", key if made else None)
        uvicorn.Server(config).run(sockets=[listening])


def _listen(options: ServeOptions) -> socket.socket:
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family, backlog=128)
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

"""Guard: what a request must be before anybody looks at it: from the right page, to the right name, with the key.

A page of somebody else's in the same browser can send requests here too, and by a name of its own that it lets point
at this machine (DNS rebinding) even read the answers. So the name in `Host` must be one of ours, and a page that a
browser names in `Origin` must be our own.
"""

from __future__ import annotations

import hmac
import json
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .options import ServeOptions

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
PAGE = {  # by path: files that hold nothing of anybody's
    "/" if file.name == "index.html" else f"/{file.name}": file
    for file in sorted(Path(__file__).with_name("page").iterdir())
}
OPEN = frozenset({*PAGE, "/health"})
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


def own_names(options: ServeOptions) -> frozenset[str]:
    """Names and addresses by which this server is reached."""
    names = {*LOCAL_NAMES, options.host, *options.allow_host}
    if not options.is_local:
        import psutil

        names |= {socket.gethostname(), f"{socket.gethostname()}.local"}
        names |= {a.address.partition("%")[0] for found in psutil.net_if_addrs().values() for a in found}
    return frozenset(name.lower() for name in names)


class Guard:
    """ASGI middleware: refuses what is not for this server, and puts the page's protections on every response."""

    def __init__(self, app: ASGIApp, names: Collection[str], key: str | None) -> None:
        self.app, self.names, self.key = app, names, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refused = self._refuse(Headers(scope=scope), scope["path"])
        if refused:
            await _send_error(send_guarded, *refused)
        else:
            await self.app(scope, receive, send_guarded)

    def _refuse(self, headers: Headers, path: str) -> tuple[int, str, str] | None:
        """(status, kind, sentence) where the request must not be answered."""
        host = _name_of(f"//{headers.get('host', '')}")
        if host not in self.names:
            return 403, "wrong_host", "this server is not reached by that name; give the name with --allow-host"
        origin = headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != headers["host"].lower():
            return 403, "wrong_origin", "another page may not ask this server"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and path not in OPEN:
            return 403, "wrong_origin", "another page may not ask this server"
        if self.key is not None and path not in OPEN:
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
                return 401, "invalid_api_key", "the key is missing or wrong; send it as `Authorization: Bearer KEY`"
        return None


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _send_error(send: Send, status: int, kind: str, message: str) -> None:
    body = json.dumps(error_body(kind, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(kind: str, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}

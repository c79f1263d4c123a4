"""The application: the page, and OpenAI's API, over one shared model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from jmedlite.base.errors import ContextFull, DataError, JmedliteError, UsageError, as_expected
from jmedlite.base.inputs import read_text
from jmedlite.runtime.shared_runner import Event

from .answering import Answers, QueueFull
from .guard import PAGE, Guard, error_body
from .replies import ChatReply, Reply, TextReply, usage
from .requests import Asked, ChatRequest, CompletionRequest, read_request

T = TypeVar("T")
Chunks = AsyncIterator[dict[str, Any]]
Endpoint = Callable[[Request], Awaitable[Response]]
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MAX_FILE = 1 << 20  # bytes of a file of the page
MAX_BODY = 4 << 20  # bytes of a request
BODY_SECONDS = 30.0  # for a request to arrive in
RETRY_SECONDS = 5


class About:
    """What is said of the model: `name` as clients call it, `facts` for the page, `notice` in both languages."""

    def __init__(self, name: str, facts: Mapping[str, Any]) -> None:
        self.name, self.facts = name, dict(facts)

    @property
    def told(self) -> dict[str, Any]:
        """What every reply has besides OpenAI's fields."""
        return {"jmedlite": {"notice": self.facts["notice"]["en"], "license": self.facts["license"]}}


def make_app(answers: Answers, about: About, names: frozenset[str], key: str | None) -> Starlette:
    """The ASGI application."""
    api = Api(answers, about)
    routes = [
        *(Route(path, _file(file)) for path, file in PAGE.items()),
        Route("/health", api.health),
        Route("/api/info", api.info),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/chat/completions", _told(api.chat), methods=["POST"]),
        Route("/v1/completions", _told(api.complete), methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, names=names, key=key)],
        exception_handlers={404: _not_there, 405: _not_there},
    )


def _told(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose faults are answers: a traceback in the server's log could hold what somebody asked."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ExceptionGroup as e:
            return fault_response(e.exceptions[0])
        except Exception as e:
            return fault_response(e)

    return answer


def _file(path: Path) -> Endpoint:
    body, kind = read_text(path, MAX_FILE), KINDS[path.suffix]  # Windows' registry may have other ideas of a .js

    async def send(request: Request) -> Response:
        return Response(body, media_type=kind)

    return send


class Api:
    """The routes."""

    def __init__(self, answers: Answers, about: About) -> None:
        self.answers, self.about = answers, about

    async def health(self, request: Request) -> Response:
        return fault_response(self.answers.fault) if self.answers.fault else JSONResponse({"status": "ok"})

    async def info(self, request: Request) -> Response:
        return JSONResponse(self.about.facts)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(self._model()) if name == self.about.name else self._unknown(name)

    def _model(self) -> dict[str, Any]:
        facts = self.about.facts
        return {
            "id": self.about.name, "object": "model", "created": facts["started"], "owned_by": "jmedlite",
            "max_model_len": facts["n_ctx"], "meta": {k: facts[k] for k in ("n_ctx", "n_ctx_train", "license")},
        }  # fmt: skip

    def _unknown(self, name: str) -> Response:
        return _error(404, "model_not_found", f"the model {name[:200]} is not here; this server has {self.about.name}")

    async def chat(self, request: Request) -> Response:
        asked = read_request(await _body(request), ChatRequest)
        if asked.model not in (None, self.about.name):
            return self._unknown(str(asked.model))
        wanted, reply = asked.to_child(), ChatReply(self.about.name, self.about.told)
        if asked.stream:
            return await _streamed(request, self._chat_chunks(wanted, reply, asked))
        events = await _unless_gone(request, self._all(wanted))
        return JSONResponse(reply.body([reply.choice(events)], events[-1:], asked.warnings))

    async def _chat_chunks(self, wanted: dict[str, Any], reply: ChatReply, asked: ChatRequest) -> Chunks:
        yield reply.chunk([reply.first()], **self.about.told)
        async for chunk in self._chunks(wanted, reply, asked):
            yield chunk

    async def _chunks(self, wanted: dict[str, Any], reply: Reply, asked: Asked) -> Chunks:
        async with aclosing(self.answers.ask(wanted)) as events:  # type: ignore[type-var]
            async for event in events:
                yield reply.chunk([reply.piece(event)], **reply.about([event], asked.warnings))
                if event["event"] == "end" and asked.tells_usage:
                    yield reply.chunk([], usage=usage([event]))

    async def complete(self, request: Request) -> Response:
        asked = read_request(await _body(request), CompletionRequest)
        if asked.model not in (None, self.about.name):
            return self._unknown(str(asked.model))
        wanted = [asked.to_child(prompt) for prompt in asked.prompts()]
        reply = TextReply(self.about.name, self.about.told, bool(asked.return_tokens_as_token_ids))
        if asked.stream:
            if len(wanted) > 1:
                raise UsageError("stream: one prompt at a time can be streamed")
            return await _streamed(request, self._chunks(wanted[0], reply, asked))
        found = await _unless_gone(request, self._together(wanted))
        choices = [reply.choice(events, i) for i, events in enumerate(found)]
        return JSONResponse(reply.body(choices, [events[-1] for events in found], asked.warnings))

    async def _all(self, wanted: dict[str, Any]) -> list[Event]:
        async with aclosing(self.answers.ask(wanted)) as events:  # type: ignore[type-var]
            return [event async for event in events]

    async def _together(self, wanted: list[dict[str, Any]]) -> list[list[Event]]:
        """Several prompts of one request: as many at once as answers are given, so that none of them waits."""
        turn = asyncio.Semaphore(self.answers.parallel)

        async def one(request: dict[str, Any]) -> list[Event]:
            async with turn:
                return await self._all(request)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in wanted]
        return [task.result() for task in tasks]


async def _streamed(request: Request, chunks: Chunks) -> Response:
    """Server-sent events. What fails before the model has said anything is an error of the request, later an event."""
    begun: list[dict[str, Any]] = []

    async def begin() -> None:
        async for chunk in chunks:
            begun.append(chunk)
            if _says_something(chunk):
                return

    await _unless_gone(request, begin())

    async def lines() -> AsyncIterator[bytes]:
        async with aclosing(chunks):  # type: ignore[type-var]
            for chunk in begun:
                yield _line(chunk)
            try:
                async for chunk in chunks:
                    yield _line(chunk)
            except Exception as e:
                fault = as_expected(e)
                yield _line(error_body(type(fault).__name__, str(fault)))
            yield b"data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _says_something(chunk: Mapping[str, Any]) -> bool:
    return any(choice.get("delta") != ChatReply.first()["delta"] for choice in chunk["choices"])


def _line(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


async def _body(request: Request) -> bytes:
    """The request's body; raises DataError where it is too large or does not come."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a foreign page's form can't send
        raise UsageError(f"the request is of type {kind[:40] or 'unknown'}; send application/json")
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                found += piece
                if len(found) > MAX_BODY:
                    raise TooLarge(f"the request has over {MAX_BODY >> 20} MB; shorten it")
    except TimeoutError:
        raise DataError("the request did not arrive in time") from None
    return bytes(found)


class TooLarge(DataError):
    """A request with more bytes than anybody needs to ask."""


class Gone(JmedliteError):
    """Whoever asked is no longer there."""


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives; it is given up where nobody waits for it any more."""
    working = asyncio.ensure_future(work)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        working.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        return await working
    except asyncio.CancelledError:
        raise Gone from None
    finally:
        watching.cancel()
        working.cancel()


STATUS: dict[type[BaseException], int] = {
    QueueFull: 503, TooLarge: 413, ContextFull: 400, UsageError: 400, DataError: 400, Gone: 499,
}  # fmt: skip


def fault_response(error: BaseException) -> Response:
    """A fault as OpenAI's clients read it, in a sentence that holds nothing of the question."""
    if isinstance(error, ClientDisconnect):
        error = Gone()
    fault = as_expected(error)
    status = next((STATUS[k] for k in type(fault).__mro__ if k in STATUS), 500)
    kind = "context_length_exceeded" if isinstance(fault, ContextFull) else type(fault).__name__
    return _error(status, kind, str(fault) or "nobody waits for the answer")


def _error(status: int, kind: str, message: str) -> Response:
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return JSONResponse(error_body(kind, message), status_code=status, headers=headers)


async def _not_there(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    what = "has nothing there" if status == 404 else f"takes no {request.method} there"
    return _error(status, "not_found", f"this server {what}; its API is at /v1")

"""A server of `jmedlite serve` in this process: its application, and a stand-in for the model behind it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from starlette.applications import Starlette
from starlette.testclient import TestClient

from jmedlite.runtime.chat_template import NOTICE, SYSTEM
from jmedlite.runtime.shared_runner import SharedRunner
from jmedlite.serve.answering import Answers
from jmedlite.serve.app import About, make_app
from jmedlite.serve.options import ServeOptions
from jmedlite.serve.run import server_of

FACTS = {
    "file": "m.gguf", "title": "M", "license": "apache-2.0", "n_ctx": 512, "n_ctx_train": 512, "notice": NOTICE,
    "system": SYSTEM, "started": 1, "level": "Q4_K_M", "size": 1000, "verdict": None,
}  # fmt: skip
END = {
    "event": "end", "stop": "eos", "n_prompt": 3, "n_generated": 2, "n_cached": 1, "n_thought": 0, "warnings": [],
}  # fmt: skip
HELLO = ({"event": "token", "text": " hel"}, {"event": "token", "text": "lo"}, END)
Event = Mapping[str, Any]


class FakeRunner:
    """What `Answers` uses of a SharedRunner: says `events` to every request, at once, or once `go_on` is set."""

    def __init__(self, *events: Event, lanes: int = 2) -> None:
        self.events, self.lanes = events or HELLO, lanes
        self.requests: list[dict[str, Any]] = []
        self.n_stopped = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.fault = None

    def submit(self, request: dict[str, Any], on_event: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        self.requests.append(request)
        stopped = threading.Event()

        def say() -> None:
            while not self.go_on.wait(0.01) and not stopped.is_set():
                pass
            for event in self.events:
                if stopped.is_set():
                    break
                on_event(dict(event))
            else:
                return
            on_event({**END, "stop": "stopped"})

        def stop() -> None:
            self.n_stopped += 1
            stopped.set()

        threading.Thread(target=say, daemon=True).start()
        return stop


def answers_of(runner: FakeRunner | SharedRunner, queue: int = 2) -> Answers:
    return Answers(cast(SharedRunner, runner), queue)


def app_of(answers: Answers, key: str | None = None, **facts: Any) -> Starlette:
    """The application, reached as `testserver`."""
    names = frozenset({"testserver", "127.0.0.1"})
    return make_app(answers, About("m", {**FACTS, **facts}), names, key)


def client_of(runner: FakeRunner | SharedRunner, queue: int = 2, **options: Any) -> TestClient:
    """A client of it, without a socket."""
    return TestClient(app_of(answers_of(runner, queue), **options))


def chunks(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream, without its end, which must be there."""
    *lines, done, _ = text.split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@contextmanager
def listening(runner: FakeRunner | SharedRunner, queue: int = 2, **options: Any) -> Iterator[str]:
    """The same behind a socket of this machine; its address."""
    answers = answers_of(runner, queue)
    server = server_of(app_of(answers, **options), answers, ServeOptions())
    with socket.create_server(("127.0.0.1", 0)) as found:
        thread = threading.Thread(target=server.run, args=([found],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

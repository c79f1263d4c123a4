"""Answering: questions from many connections to one shared model, no more at once than wait in a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from jmedlite.base.errors import BY_NAME, JmedliteError
from jmedlite.runtime.shared_runner import Event, SharedRunner


class QueueFull(JmedliteError):
    """As many questions wait as may."""


class Answers:
    """The one way from a connection to the model: beside those that it answers at once, `queue` questions may wait."""

    def __init__(self, runner: SharedRunner, queue: int) -> None:
        self._runner, self._most, self.n = runner, runner.lanes + queue, 0
        self.parallel = runner.lanes

    async def ask(self, request: Mapping[str, Any]) -> AsyncIterator[Event]:
        """The events of one request, the last one `end`; whoever stops reading ends the answer.

        Raises QueueFull, and what the model's process says.
        """
        if self.n >= self._most:
            raise QueueFull("too many questions wait for an answer; try again in a few seconds")
        self.n += 1
        stop: Callable[[], None] | None = None
        try:
            loop = asyncio.get_running_loop()
            events: asyncio.Queue[Event] = asyncio.Queue()

            def hand_over(event: Event) -> None:
                loop.call_soon_threadsafe(events.put_nowait, event)

            stop = await loop.run_in_executor(None, self._runner.submit, dict(request), hand_over)
            is_first = request["op"] == "ask"  # an answer begins without white space
            while True:
                event = await events.get()
                if event["event"] == "error":
                    stop = None
                    raise BY_NAME.get(event["kind"], JmedliteError)(event["message"])
                if event["event"] == "token" and is_first:
                    event = {**event, "text": event["text"].lstrip()}
                    if not event["text"]:
                        continue
                    is_first = False
                yield event
                if event["event"] == "end":
                    stop = None
                    return
        finally:
            self.n -= 1
            if stop:
                stop()

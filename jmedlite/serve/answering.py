"""Answering: questions from many connections to one shared model, no more at once than wait in a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from jmedlite.base.errors import BY_NAME, JmedliteError
from jmedlite.runtime.shared_runner import Event, SharedRunner


class QueueFull(JmedliteError):
    """As many questions wait as may."""


class Answers:
    """The one way from a connection to the model: beside those that it answers at once, `queue` questions may wait.

    A question counts until the model is done with it, however slowly its answer is read.
    """

    def __init__(self, runner: SharedRunner, queue: int) -> None:
        self._runner, self._most, self.n = runner, runner.lanes + queue, 0
        self.parallel = runner.lanes
        self._given: set[asyncio.Future[Callable[[], None]]] = set()  # what ends each answer that is being given

    @property
    def fault(self) -> JmedliteError | None:
        """Why nothing is answered, where that is so."""
        return self._runner.fault

    async def ask(self, request: Mapping[str, Any]) -> AsyncIterator[Event]:
        """The events of one request, the last one `end`; whoever stops reading ends the answer.

        Raises QueueFull, and what the model's process says.
        """
        if self.n >= self._most:
            raise QueueFull("too many questions wait for an answer; try again in a few seconds")
        self.n += 1
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def hand_over(event: Event) -> None:
            if event["event"] in ("end", "error"):
                self.n -= 1
            events.put_nowait(event)

        def from_thread(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(hand_over, event)

        # in threads: the pipe to the model's process may be full, or the process must be started anew
        sending = loop.run_in_executor(None, self._runner.submit, dict(request), from_thread)
        sending.add_done_callback(self._was_sent)
        self._given.add(sending)
        is_whole = False
        try:
            await asyncio.shield(sending)
            is_first = request["op"] == "ask"  # an answer begins without white space
            while True:
                event = await events.get()
                is_whole = event["event"] in ("end", "error")
                if event["event"] == "error":
                    raise BY_NAME.get(event["kind"], JmedliteError)(event["message"])
                if event["event"] == "token" and is_first:
                    event = {**event, "text": event["text"].lstrip()}
                    if not event["text"]:
                        continue
                    is_first = False
                yield event
                if is_whole:
                    return
        finally:
            self._given.discard(sending)
            if not is_whole:  # also where it is only about to be sent
                sending.add_done_callback(lambda sent: _stop(loop, sent))

    def end_all(self) -> None:
        """End every answer that is being given, as if each reader had stopped it."""
        loop = asyncio.get_running_loop()
        for sending in self._given:
            sending.add_done_callback(lambda sent: _stop(loop, sent))

    def _was_sent(self, sent: asyncio.Future[Callable[[], None]]) -> None:
        if sent.cancelled() or sent.exception():
            self.n -= 1


def _stop(loop: asyncio.AbstractEventLoop, sent: asyncio.Future[Callable[[], None]]) -> None:
    if not sent.cancelled() and not sent.exception():
        loop.run_in_executor(None, sent.result())

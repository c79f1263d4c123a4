"""Conversation: the turns with a model, what is dropped when the context is full, and saving it where one asks to."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import ContextFull, DataError, system_fault
from jmedlite.base.halves import has_halves
from jmedlite.base.inputs import parse_json, read_bytes
from jmedlite.base.options import with_options
from jmedlite.base.outputs import write_private
from jmedlite.base.records import Foreign, from_json

from .answers import Answer, ThoughtPiece
from .chat_template import language_of
from .runner import Runner
from .sampling import Sampling

FORMAT = 1
MAX_SAVED = 1 << 24


@dataclass(frozen=True, kw_only=True)
class _Saved(Foreign):
    """What is read of a file; which model answered is for people."""

    format: int
    state: str
    turns: tuple[tuple[str, ...], ...]
    system: str | None = None
    language: str | None = None


class Conversation:
    """Turns that live in memory only, until `save`.

    `system` and `language` as for `Runner.stream`; `on_drop` is told every question that is dropped, with its answer,
    because the context is full; `options` are those of `jmedlite.runtime.sampling.Sampling`.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        system: str | None = None,
        language: str | None = None,
        on_drop: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        self.runner, self.system, self.language = runner, system, language
        self.sampling = with_options(Sampling, options)
        self.turns: list[tuple[str, str]] = []
        self._on_drop = on_drop or (lambda question: None)
        self._state: str | None = None

    def send(self, question: str) -> Iterator[str | ThoughtPiece | Answer]:
        """The answer piece by piece, a thought before it as `ThoughtPiece`s, and last the whole `Answer`.

        An answer left half-way stays as far as it came. A thought is never sent back to the model; a question that got
        nothing but a thought is not kept. Where the context is full, the oldest questions are dropped. Raises
        ContextFull where the question alone is too long: the conversation is then as before, without what was dropped.
        """
        self.language = self.language or language_of(question)
        reserve = min(self.sampling.max_tokens, int(self.runner.facts["n_ctx"]) // 4)
        while True:
            try:
                yield from self._answer(question, reserve)
                return
            except ContextFull:
                if self.turns:
                    self._on_drop(self.turns[0][1])
                    del self.turns[:2]
                elif reserve:
                    reserve = 0
                else:
                    raise

    def _answer(self, question: str, reserve: int) -> Iterator[str | ThoughtPiece | Answer]:
        turns = [*self.turns, ("user", question)]
        stream = self.runner.converse(
            turns, system=self.system, language=self.language, continued=True, reserve=reserve, **vars(self.sampling)
        )
        text = ""
        with closing(stream) as pieces:  # type: ignore[type-var]
            try:
                for piece in pieces:
                    if isinstance(piece, Answer):
                        text = piece.text
                    elif isinstance(piece, str):  # a model's thoughts are no part of what it said
                        text += piece
                    yield piece
            finally:
                if text:
                    self.turns = [*turns, ("assistant", text)]

    def reset(self) -> None:
        """Forget all turns; what was saved stays as it is."""
        self.turns, self._state = [], None

    def save(self, path: Path) -> None:
        """Write the turns to `path` (mode 600), and the evaluated state to the cache, so that `load` is quick."""
        self._state = self._state or secrets.token_hex(16)
        facts = {
            "format": FORMAT,
            "model": self.runner.facts["name"],
            "system": self.system,
            "language": self.language,
            "state": self._state,
            "turns": self.turns,
        }
        try:
            write_private(path, json.dumps(facts, ensure_ascii=False, indent=1).encode("utf-8"))
        except OSError as e:
            raise system_fault(e, path, "writing") from None
        self.runner.keep_state(self._state)

    def load(self, path: Path) -> None:
        """Go on with a conversation that was saved; raises InputMissing or DataError."""
        raw = read_bytes(path, MAX_SAVED)
        try:
            facts = parse_json(raw)
            saved = from_json(facts, _Saved, path.name)
            roles = [turn[0] if len(turn) == 2 else None for turn in saved.turns]
            sound = saved.format == FORMAT and roles == ["user", "assistant"] * (len(saved.turns) // 2)
        except (ValueError, DataError):
            sound = False
        if not sound or has_halves(raw, facts):
            raise DataError(f"{path}: is not a conversation saved by `jmedlite chat`; choose another file")
        self.turns, self._state = [(role, text) for role, text in saved.turns], saved.state
        self.system = saved.system if self.system is None else self.system
        self.language = saved.language or self.language
        self.runner.resume_state(saved.state)

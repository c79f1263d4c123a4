"""Thoughts: what a model writes to itself before it answers, told apart from the answer, in every form that is known.

A thought stands at the beginning, opened by the model or by its template already (DeepSeek's distills). What a later
text says of tags is text. A thought that is not closed has no answer behind it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .added_tokens import common_prefix

if TYPE_CHECKING:
    from .vocabulary import Vocabulary


START = "<|start|>assistant"  # of another message of one answer, in gpt-oss's form


@dataclass(frozen=True)
class Form:
    """How a kind of model writes a thought: between `opening` and `closing`, in lines of their own with `lines`.

    `header` begins the answer, also where there was no thought. Tags that are `words` may begin any answer, so they
    count where the template names them.
    """

    opening: str
    closing: str
    lines: bool = False
    header: str = ""
    words: bool = False

    @property
    def gap(self) -> str:
        """What stands between a closed thought and the answer."""
        return f"{START}{self.header}" if self.header else "\n\n" if self.lines else ""

    @property
    def empty(self) -> str:
        """What tells a model that it has thought already."""
        return self.header or self.opening + self.end("")

    def end(self, thought: str) -> str:
        """What is written behind an open thought to have the answer next."""
        wanted = 1 if thought.strip() else 2  # the empty thought of Qwen3's own template has an empty line
        there = len(thought) - len(thought.rstrip("\n"))
        return "\n" * max(0, wanted - there) * self.lines + self.closing + self.gap


FORMS = (
    Form("<think>", "</think>", lines=True),  # Qwen3, DeepSeek and most others
    Form("<thinking>", "</thinking>", lines=True),
    Form("<reasoning>", "</reasoning>", lines=True),
    Form("<thought>", "</thought>", lines=True),  # EXAONE Deep
    Form("[THINK]", "[/THINK]"),  # Magistral
    Form("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    Form("<seed:think>", "</seed:think>"),  # Seed-OSS
    Form("◁think▷", "◁/think▷"),  # Kimi
    Form("<|channel>thought", "<channel|>"),  # Gemma 4
    Form("<|channel|>analysis<|message|>", "<|end|>", header="<|channel|>final<|message|>"),  # gpt-oss, as the next
    Form("<|channel|>commentary<|message|>", "<|end|>", header="<|channel|>final<|message|>"),
    Form("Here is my thought process:", "Here is my response:", lines=True, words=True),  # Granite 3.2
    Form("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", lines=True, words=True),  # Apriel
)
GENERAL = tuple(form for form in FORMS if not form.words)
# what some put around the answer behind a thought: Granite 3.3, Hunyuan, Command A
WRAPPERS = {"<response>": "</response>", "<answer>": "</answer>", "<|START_RESPONSE|>": "<|END_RESPONSE|>"}
# `content.split('</x>')`: how a template takes thoughts out of earlier answers
_SPLIT = re.compile(r"""\.\s*split\(\s*['"](?:<(/)([\w:.-]+)>|\[(/)([\w:.-]+)\])['"]""")
_TAGS = re.compile(r"(<[^<>\s]*>|\s)*")


def forms_in(template: str | None) -> tuple[Form, ...]:
    """The forms of thoughts that a chat template knows: those by name, and others at whose closing tag it splits."""
    text = template or ""
    found = [f for f in FORMS if f.opening in text or (f.closing in text and not f.header)]
    known = {tag for f in FORMS for tag in (f.opening, f.closing)} | set(WRAPPERS.values())
    for split in dict.fromkeys(_SPLIT.findall(text)):
        _, angled, _, squared = split
        opening, closing = (f"<{angled}>", f"</{angled}>") if angled else (f"[{squared}]", f"[/{squared}]")
        if closing not in known and opening in text:
            found.append(Form(opening, closing, lines=bool(angled)))
    return tuple(found)


def opened_by(prompt: str, forms: Sequence[Form]) -> Form | None:
    """The form of the thought that the end of a prompt has begun; None where it has begun none."""
    for form in forms:
        _, found, after = prompt.rpartition(form.opening)
        if found and form.closing not in after and _TAGS.fullmatch(after):
            return form
    return None


def is_closed(prompt: str, forms: Sequence[Form]) -> bool:
    """Whether a prompt ends behind a thought, so that the answer comes next."""
    return any(prompt.rstrip().endswith(form.header or form.closing) for form in forms)


UNDECIDED, THINKING, BETWEEN, ANSWERING = "undecided", "thinking", "between", "answering"


class ThoughtStream:
    """Tells thought and answer apart as they come, in pieces of any size; `opened` where the prompt began the thought.

    What may become a tag is held back until it is known.
    """

    def __init__(self, forms: Sequence[Form] = GENERAL, opened: Form | None = None) -> None:
        self.forms, self.form, self.state = forms, opened, THINKING if opened else UNDECIDED
        self._held, self._closer = "", ""  # what is not sure; what ends the answer's wrapper
        self._again = bool(opened)  # a model may open once more what its template has opened
        self._bare = False  # an answer behind something else begins without white space

    def take(self, piece: str) -> tuple[str, str]:
        """What of the thought and of the answer is sure with the next piece."""
        text, self._held = self._held + piece, ""
        thought = answer = ""
        while text:
            if self.state == THINKING:
                told, text = self._think(text)
                thought += told
            elif self.state == ANSWERING:
                answer += self._answer(text)
                break
            else:
                text = self._begin(text)
        return thought, answer

    def rest(self, *, whole: bool = True) -> tuple[str, str]:
        """What was held back, where the text ends; in one that was cut, half a tag at the beginning is one."""
        text, self._held = self._held, ""
        if self.state == UNDECIDED and text.strip() and not whole:
            self.state = THINKING
        if self.state == BETWEEN:  # white space, or half a tag
            return "", text.lstrip() if whole else ""
        return (text, "") if self.state == THINKING else ("", text)

    @property
    def in_wrapper(self) -> bool:
        """Whether the answer stands between tags of its own."""
        return bool(self._closer)

    def settle(self, *, bare: bool = True) -> None:
        """Whatever comes now is the answer; `bare` where that begins without white space."""
        self.state, self._held, self._bare = ANSWERING, "", bare

    def close(self) -> None:
        """The thought is over, by somebody else's word; half a tag is dropped."""
        self.state, self._held, self._again = BETWEEN, "", False

    def _heads(self) -> dict[str, tuple[str, Form | None, str]]:
        """What may begin here: the state that follows, the form of a thought, the end of a wrapper."""
        found: dict[str, tuple[str, Form | None, str]] = {}
        for form in self.forms:
            found[form.opening] = THINKING, form, ""
            if form.header:
                found[START + form.opening] = THINKING, form, ""
                found[form.header] = found[START + form.header] = ANSWERING, self.form, ""
        if self.state == BETWEEN:
            found |= {opening: (ANSWERING, self.form, closing) for opening, closing in WRAPPERS.items()}
        return found

    def _begin(self, text: str) -> str:
        """Find out what begins here; what is left to be read."""
        begin, heads = text.lstrip(), self._heads()
        tag = max((head for head in heads if begin.startswith(head)), key=len, default=None)
        if tag is not None:
            self.state, self.form, self._closer = heads[tag]
            self._bare = True
            return begin[len(tag) :]
        if not begin or any(head.startswith(begin) for head in heads):
            self._held = text
            return ""
        self._bare = self.state == BETWEEN
        self.state = ANSWERING
        return text

    def _think(self, text: str) -> tuple[str, str]:
        """(what of the thought is sure, what is left to be read)."""
        assert self.form is not None
        if self._again:
            begin = text.lstrip()
            if self.form.opening.startswith(begin) and begin != self.form.opening:
                self._held = text
                return "", ""
            self._again, text = False, begin.removeprefix(self.form.opening)
        thought, found, after = text.partition(self.form.closing)
        if found:
            self.state = BETWEEN
            return thought, after
        return self._but_half(text, self.form.closing), ""

    def _answer(self, text: str) -> str:
        if self._bare:
            text = text.lstrip()
            self._bare = not text
        if not self._closer:
            return text
        answer, found, after = text.partition(self._closer)
        if found:
            self._closer = ""
            return answer + after
        return self._but_half(text, self._closer)

    def _but_half(self, text: str, tag: str) -> str:
        """The text without what may become a tag, which is held back."""
        n = next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
        self._held = text[len(text) - n :]
        return text[: len(text) - n]


@dataclass(frozen=True)
class Said:
    """What a model wrote: its thought (None where there is none), its answer, and whether the thought goes on."""

    thought: str | None
    answer: str
    is_open: bool = False


def split_thought(text: str, *, opened: bool = False) -> Said:
    """The thought and the answer of a text whose prompt is not known; `opened` where the prompt began the thought.

    A closing tag before any opening one ends a thought as well: a template had begun it.
    """
    form = None
    if not any(text.lstrip().startswith(f.opening) for f in GENERAL):
        closed = [f for f in GENERAL if f.closing in text and (opened or not f.header)]
        closed = [f for f in closed if opened or f.opening not in text.partition(f.closing)[0]]
        form = next(iter(closed), GENERAL[0] if opened else None)
    stream = ThoughtStream(GENERAL, form)
    pieces = [stream.take(text), stream.rest(whole=False)]
    thought, answer = ("".join(piece) for piece in zip(*pieces, strict=True))
    if stream.form is None and stream.state != THINKING:
        return Said(None, answer)
    return Said(thought.strip(), answer, stream.state == THINKING)


class AnswerReader:
    """An answer read token by token: its thought apart and counted, and ended for the model where it has used `budget`.

    `n_written` tokens are the model's own, `n_thought` of them its thought's with the tags; `has_text` where any of
    them is more than control tokens and NULs.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        forms: Sequence[Form] = GENERAL,
        opened: Form | None = None,
        budget: int | None = None,
    ) -> None:
        self.vocabulary, self.budget = vocabulary, budget
        self.stream = ThoughtStream(forms, opened)
        self.thought = self.answer = ""
        self.n_written = self.n_thought = self.n_begun = 0  # how often the answer has begun anew
        self.by_budget = self.has_text = False
        self._tags = vocabulary.controls_in(tuple(_tags_of(forms)))
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def state(self) -> str:
        return self.stream.state

    @property
    def is_due(self) -> bool:
        """Whether the thought has used up its budget."""
        return self.budget is not None and self.state == THINKING and self.n_thought >= self.budget

    def is_full(self, max_tokens: int) -> bool:
        """Whether no more may be written: a thought counts where nothing else bounds it."""
        return self.n_written - (0 if self.budget is None else self.n_thought) >= max_tokens

    def read(self, token: int) -> tuple[str, str]:
        """What of thought and answer is sure with the next token of the model's."""
        was = self.state
        # a tag may be a control token, which is no text else
        shown = token in self._tags and (was != ANSWERING or self.stream.in_wrapper)
        piece = self.vocabulary.piece(token, shown=True) if shown else self.vocabulary.piece(token)
        found = self.stream.take(self._bytes.decode(piece))
        self.has_text = self.has_text or bool(piece.strip(b"\0"))
        self.n_written += 1
        if THINKING in (was, self.state):
            self.n_thought = self.n_written
        return self._keep(found)

    def begins_answer(self, token: int) -> bool:
        """Whether the model would say something of its answer with this token."""
        after = copy(self)
        after.stream, after._bytes = copy(self.stream), copy(self._bytes)
        return bool(after.read(token)[1])

    def close(self) -> list[int]:
        """End the thought here; the tokens that say so to the model."""
        assert self.stream.form is not None
        self._bytes.reset()  # a character that was cut is dropped, and half a tag
        text = self.stream.form.end(self.thought)
        self.stream.close()
        return self._tokens(text)

    def close_by_budget(self) -> list[int]:
        self.by_budget = True
        return self.close()

    def begin_anew(self) -> None:
        """The answer begins, without a thought: what was read so far counts for nothing."""
        self.stream.settle()
        self.n_written, self.n_begun = 0, self.n_begun + 1
        self._bytes.reset()

    def open_answer(self) -> list[int]:
        """Begin the answer, where a thought has just ended; the tokens that stand between the two."""
        assert self.stream.form is not None
        gap = self.stream.form.gap
        self.stream.settle()
        return self._tokens(gap)

    def end(self, *, whole: bool) -> tuple[str, str]:
        """What was held back, where the answer ends; `whole` where the model ended it."""
        return self._keep(self.stream.rest(whole=whole))

    def said(self) -> Said:
        """All that was read."""
        is_open = self.state == THINKING
        return Said(self.thought.strip() if self.n_thought or is_open else None, self.answer, is_open)

    def _tokens(self, text: str) -> list[int]:
        """Tokens of a template's text behind other text: some vocabularies begin the first one with a space."""
        before, whole = (self.vocabulary.tokenize(t, parse_special=True) for t in ("a", f"a{text}"))
        return whole[common_prefix(before, whole) :]

    def _keep(self, found: tuple[str, str]) -> tuple[str, str]:
        self.thought += found[0]
        self.answer += found[1]
        return found


def _tags_of(forms: Sequence[Form]) -> Iterator[tuple[str, ...]]:
    """Texts of tags; those behind the first count where that is made of control tokens."""
    for form in forms:
        yield form.opening, form.closing, form.gap
    yield from WRAPPERS.items()

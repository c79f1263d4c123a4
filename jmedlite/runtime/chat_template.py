"""Chat template: from a question to a prompt, by the model's own template, rendered safely; and the system prompts.

A chat template is a program that came with the model file, so it runs sandboxed. What a person typed is never part of
the template's input: a marker stands for it, and the text takes the marker's place after rendering. So the parts of the
prompt that may hold control tokens and the parts that may not stay apart.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.wording import some

from .thoughts import GENERAL, Form, forms_in, is_closed, opened_by

NOTICE = {
    "en": "For research only, not for diagnosis or treatment.",
    "ja": "研究用の出力です。診断や治療の判断には使わないでください。",
}
SYSTEM = {
    "en": (
        "You are an assistant with broad knowledge of medicine. Answer accurately and concisely, "
        "and say so when you are not sure."
    ),
    "ja": (
        "あなたは医学に詳しいアシスタントです。質問に日本語で正確かつ簡潔に答えてください。"
        "確かでないことは、そのように述べてください。"
    ),
}
# kana and their extensions, kanji with all their extensions and compatibility forms, 々〆〇, half-width katakana
JAPANESE = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U0001aff0-\U0001b16f\U00020000-\U000323af]"
)
PLAIN = {"en": ("Question: ", "Answer:"), "ja": ("質問：", "回答：")}
# Variables by which templates turn thoughts on and off: Qwen3, GLM, SmolLM3 and others; DeepSeek V3.1 and Granite;
# Command A; Seed-OSS. (gpt-oss's `reasoning_effort` has no "off".)
SWITCHES: dict[str, dict[bool, Any]] = {
    "enable_thinking": {True: True, False: False},
    "thinking": {True: True, False: False},
    "reasoning": {True: True, False: False},
    "thinking_budget": {True: -1, False: 0},
}
# what a template gets in any case, beside jinja's own functions
SET_HERE = frozenset({
    "messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "raise_exception",
    "strftime_now", "range", "dict", "namespace", "cycler", "joiner", "lipsum",
})  # fmt: skip
MAX_RENDERED = 1 << 20
MAX_REPEAT = 100_000
MAX_INTEGER_BITS = 1 << 12


@dataclass(frozen=True)
class Part:
    """A stretch of the prompt; only a trusted one may hold control tokens, a private one is never kept on disk."""

    text: str
    trusted: bool
    private: bool = False


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is "user" or "assistant"."""

    role: str
    content: str


def language_of(text: str) -> str:
    """ "ja" where the text has kana (of half width, too) or kanji, else "en"."""
    return "ja" if JAPANESE.search(text) else "en"


def build_prompt(
    messages: Sequence[Message],
    *,
    system: str | None,
    template: str | None,
    bos: str = "",
    eos: str = "",
    language: str | None = None,
    think: bool | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[Part]:
    """The prompt in parts: `template` rendered with a system prompt and the conversation, up to the next answer.

    `messages` begin and end with the person's. `system` is the person's own text (untrusted); None means the built-in
    one, "" none at all. Without a template the prompt has a plain form. `think` sets the template's own switch; where
    it is False and the prompt would have the model think all the same, the prompt ends behind an empty thought.
    `variables` are further ones of the template's. Raises DataError.
    """
    language = language or language_of(messages[0].content)
    parts: dict[str, Part] = {}

    def marker(part: Part) -> str:
        name = f"\ue000{secrets.token_hex(8)}\ue001"
        parts[name] = part
        return name

    system_text = marker(Part(system.strip(), False)) if system else "" if system == "" else SYSTEM[language]
    turns = [Message(m.role, marker(Part(m.content.strip(), False, private=True))) for m in messages]
    if template is None:
        return _split(_plain(turns, system_text, language), parts)
    given = dict(variables or {})
    switches = sorted(SWITCHES.keys() & variables_of(template)) if think is not None else []
    given = {name: SWITCHES[name][bool(think)] for name in switches} | given
    prompt = _split(_render_with_system(template, system_text, turns, bos, eos, given), parts)
    if think is False and (end := _without_thought(prompt, template, bool(switches))):
        prompt.append(Part(end, True))
    return prompt


def end_of(prompt: Sequence[Part]) -> str:
    """What stands behind all that a person wrote."""
    last = next((i for i in reversed(range(len(prompt))) if not prompt[i].trusted), -1)
    return "".join(part.text for part in prompt[last + 1 :])


def thought_forms(template: str | None) -> tuple[Form, ...]:
    """The forms that a thought may have in answers to this template's prompts: all, and those that it alone knows."""
    return tuple(dict.fromkeys((*GENERAL, *forms_in(template))))


def _without_thought(prompt: Sequence[Part], template: str, switched: bool) -> str:
    """What a prompt lacks for the model not to think."""
    named, end = forms_in(template), end_of(prompt)
    if form := opened_by(end, thought_forms(template)):
        return form.end(end.rpartition(form.opening)[2])
    return named[0].empty if named and not switched and not is_closed(end, named) else ""


def warnings_of(template: str | None, think: bool | None, variables: Mapping[str, Any]) -> list[str]:
    """What was asked of a chat template, and it does not do."""
    if think is None and not variables:
        return []
    known = variables_of(template) if template is not None else frozenset()
    own = sorted(known - SET_HERE)
    has = f"has {some(own, 8)} instead" if own else "has no variables of its own"
    why = "the model has no chat template" if template is None else f"the model's chat template {has}"
    found = [f"--template-var {name}: has no effect: {why}" for name in variables if name not in known]
    if think is not None and not SWITCHES.keys() & known and not forms_in(template):
        flag = "--think" if think else "--no-think"
        why = "the model has no chat template" if template is None else "the model's chat template knows no thoughts"
        found.append(f"{flag}: has no effect: {why}")
    return found


def variables_of(template: str) -> frozenset[str]:
    """The variables that a chat template reads; raises DataError."""
    from jinja2 import meta

    try:
        return frozenset(meta.find_undeclared_variables(_sandbox().parse(template.replace("\r\n", "\n"))))
    except MemoryError:
        raise
    except Exception as e:
        raise _unusable(e) from None


def _plain(turns: Sequence[Message], system: str, language: str) -> str:
    asks, answers = PLAIN[language]
    text = f"{system}\n\n" if system else ""
    for turn in turns:
        text += f"{asks}{turn.content}\n{answers}" if turn.role == "user" else f"{turn.content}\n\n"
    return text


def _render_with_system(
    template: str, system: str, turns: Sequence[Message], bos: str, eos: str, variables: Mapping[str, Any]
) -> str:
    plain = [{"role": t.role, "content": t.content} for t in turns]
    if not system:
        return render_chat(template, plain, bos, eos, variables)
    try:
        rendered = render_chat(template, [{"role": "system", "content": system}, *plain], bos, eos, variables)
        if system in rendered:
            return rendered
    except DataError:
        pass  # templates of Mistral's and Gemma's kind raise on a system message
    first = {"role": "user", "content": f"{system}\n\n{turns[0].content}"}
    return render_chat(template, [first, *plain[1:]], bos, eos, variables)


def _split(rendered: str, marked: dict[str, Part]) -> list[Part]:
    parts = [Part(rendered, True)]
    for marker, part in marked.items():
        if rendered.count(marker) != 1:
            raise DataError("the model's chat template does not place the question exactly once; the file is unusable")
        split: list[Part] = []
        for p in parts:
            before, found, after = p.text.partition(marker) if p.trusted else (p.text, "", "")
            split.append(replace(p, text=before))
            if found:
                split += [part, Part(after, True)]
        parts = split
    return [part for part in parts if part.text]


def _sandbox() -> Any:
    """The environment that a chat template runs in, with what transformers' `apply_chat_template` gives it."""
    import jinja2
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Also bounds what multiplication and powers can make, and names what is reached for."""

        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            # a product of huge integers holds the interpreter's lock, so that no time limit could end it
            bits = [x.bit_length() for x in (left, right) if isinstance(x, int)]
            if (
                operator == "**"
                or sum(bits) > MAX_INTEGER_BITS
                or (
                    not (isinstance(left, int | float) and isinstance(right, int | float))
                    and max(x for x in (left, right, 0) if isinstance(x, int)) > MAX_REPEAT
                )
            ):
                raise SecurityError("the template makes something too large")
            return super().call_binop(context, operator, left, right)

        def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
            """Jinja's own would be printed as nothing, and the prompt be another one in silence."""
            raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}, which no template needs")

    class Generation(Extension):
        """`{% generation %}`, by which transformers marks what was generated: what it holds, as if it was not there."""

        tags = {"generation"}  # noqa: RUF012 - so jinja declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda fmt: datetime.datetime.now().strftime(fmt)
    environment.filters["tojson"] = tojson
    return environment


def render_chat(
    template: str, messages: list[dict[str, str]], bos: str, eos: str, variables: Mapping[str, Any] | None = None
) -> str:
    """Render a Hugging Face chat template in a sandbox; raises DataError.

    The variables and functions are those of transformers' `apply_chat_template`, and `variables` besides.
    """
    environment = _sandbox()
    try:
        pieces, length = [], 0
        given = {
            **(variables or {}), "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True,
            "bos_token": bos, "eos_token": eos,
        }  # fmt: skip
        for piece in environment.from_string(template.replace("\r\n", "\n")).generate(given):
            length += len(piece)
            if length > MAX_RENDERED:
                raise DataError(f"the model's chat template makes more than {MAX_RENDERED:,} characters")
            pieces.append(piece)
    except DataError:
        raise
    except MemoryError:
        raise DataError("the model's chat template needs too much memory") from None
    except Exception as e:  # a template can raise anything
        raise _unusable(e) from None
    return "".join(pieces)


def _unusable(e: Exception) -> DataError:
    return DataError(f"the model's chat template can't be used: {' '.join(str(e).split())[:200]}")

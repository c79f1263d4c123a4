"""Prompt templates: the project's own, and files in the forms of the papers' harnesses.

A template is text with places in braces: `{question}` (or `{{instruction}}`), `{options}` (a line "A. …" each),
`{choices}` (or `{{input}}`: the choices, joined with commas), `{context}` and `{n}` (the number of right answers). The
liquid form of japanese-lm-med-harness and the format strings of JMedBench's med-eval are both read.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.inputs import read_text
from jmedlite.base.looking import is_file
from jmedlite.benchmarks.tasks.items import LETTERS, Item

METHODS = ("letter", "text", "generate")
MAX_TEMPLATE = 1 << 20
PLACE = re.compile(r"\{\{\s*(\w+)\s*\}\}|\{(\w+)\}")
SAME = {"instruction": "question", "input": "choices", "option_text": "options"}
KNOWN = ("question", "options", "choices", "context", "n")

# (what comes once, before the examples; the question) by method and language
OWN = {
    ("letter", "ja"): (
        "次の医学の問題に、選択肢の記号で答えてください。\n\n",
        "問題：{question}\n{options}\n答え：",
    ),
    ("letter", "en"): (
        "Answer each medical question with the letter of the right choice.\n\n",
        "Question: {question}\n{options}\nAnswer:",
    ),
    ("text", "ja"): ("", "質問：{question}\n答え："),
    ("text", "en"): ("", "Question: {question}\nAnswer:"),
    ("generate", "ja"): (
        "次の医学の問題について、正しい選択肢の内容だけを書いてください。\n\n",
        "問題：{question}\n選択肢：{choices}\n答え：",
    ),
    ("generate", "en"): (
        "Answer each medical question by copying the text of the right choice, and nothing else.\n\n",
        "Question: {question}\nChoices: {choices}\nAnswer:",
    ),
}
CONTEXT = {"ja": "要旨：{context}\n", "en": "Abstract: {context}\n"}


@dataclass(frozen=True)
class Template:
    """`intro` comes once, `text` for each example and the question; `own` ones end an answer with its line."""

    name: str
    intro: str
    text: str
    own: bool

    def describe(self) -> dict[str, Any]:
        """What a run keeps of it."""
        whole = self.intro + self.text
        return {"name": self.name, "text": whole, "sha256": hashlib.sha256(whole.encode()).hexdigest()}

    def names(self) -> set[str]:
        """The places that the text has, by their names here."""
        return {_name(found) for found in PLACE.finditer(self.text)}

    @property
    def lead(self) -> str:
        """What separates the prompt from an answer: a space after "Answer:", nothing after "答え：" or a line's end."""
        last = self.text[-1:]
        return " " if last.isascii() and not last.isspace() else ""

    def fill(self, item: Item, order: tuple[int, ...]) -> list[tuple[str, bool]]:
        """The prompt of one question as (text, trusted): only the template's own text may name control tokens."""
        text = self.text
        if self.own and item.context:
            text = CONTEXT[item.lang] + text
        shown = [item.choices[i] for i in order]
        values = {
            "question": item.question,
            "options": "\n".join(f"{letter}. {c}" for letter, c in zip(LETTERS, shown, strict=False)),
            "choices": ",".join(shown),
            "context": item.context,
            "n": str(len(item.answers)),
        }
        parts: list[tuple[str, bool]] = []
        at = 0
        for found in PLACE.finditer(text):
            parts += [(text[at : found.start()], True), (values[_name(found)], False)]
            at = found.end()
        return [part for part in [*parts, (text[at:], True)] if part[0]]


def _name(found: re.Match[str]) -> str:
    raw = found[1] or found[2]
    return SAME.get(raw, raw)


def own_template(method: str, language: str) -> Template:
    """The project's template for a method and a language ("ja" or "en")."""
    intro, text = OWN[method, language]
    return Template(f"{method}-{language}", intro, text, True)


def read_template(spec: str, methods: tuple[str, ...]) -> Template:
    """A template file, or `FILE.py:NAME` for one of the harnesses' Python files, which is read but never run.

    Raises DataError for a place that nothing fills, UsageError where a method needs a place that is not there.
    """
    path, name = Path(spec), ""
    if not is_file(path) and ":" in spec:
        before, _, name = spec.rpartition(":")
        path = Path(before)
    text = read_text(path, MAX_TEMPLATE)
    if path.suffix == ".py":
        text = _from_python(path, text, name)
    elif name:
        raise UsageError(f"--template {spec}: only a .py file holds several templates")
    template = Template(f"{path.name}:{name}" if name else path.name, "", text, False)
    if unknown := sorted(template.names() - set(KNOWN)):
        raise DataError(f"{spec}: has a place {{{unknown[0]}}}; known are {', '.join((*KNOWN, *SAME))}")
    if "question" not in template.names():
        raise DataError(f"{spec}: has no place for the question; write {{question}} (or {{{{instruction}}}}) there")
    if "letter" in methods and "options" not in template.names():
        raise UsageError(f"--template {spec}: has no {{options}}, which --method letter needs; use --method text")
    return template


def _from_python(path: Path, text: str, name: str) -> str:
    """The string that a Python file gives `name`: `name = "…"`, `name = Template("…")`, or `{"name": "…"}`."""
    try:
        found = dict(_strings(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise DataError(f"{path}: is not a Python file that can be read") from None
    if name in found:
        return found[name]
    listing = ", ".join(sorted(found)) or "none"
    raise UsageError(f"--template {path}:{name}: no such template; the file has {listing}")


def _strings(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            value = node.value
            if isinstance(value, ast.Call) and len(value.args) == 1:
                value = value.args[0]
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield node.targets[0].id, value.value
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield str(key.value), value.value

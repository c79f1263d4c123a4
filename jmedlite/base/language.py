"""Language: what is shown to a person, in the language of this process; the catalogue is jmedlite/locale (gettext's).

Sentences are written in English where they arise, raised, kept in files and sent between processes so. Only the command
line says them in another language, at the moment when they are shown: a sentence is found by its text, or by the text
around its values, as the f-string that made it has it (tools/make_catalogue.py). What is not found stays English.
"""

from __future__ import annotations

import functools
import os
import re
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

CATALOGUE = Path(__file__).parent.parent / "locale" / "ja" / "LC_MESSAGES" / "jmedlite.mo"
SETTING = "JMEDLITE_LANG"
_LOCALES = ("LC_ALL", "LC_MESSAGES", "LANG")
_WEAK = 4  # letters in a sentence around its values; with fewer, it may be anybody's
_FEW = 6  # with fewer, its values are words or known; the first may be a path
_JOINTS = ("\n", "; ", ": ", " (")  # where a text of several sentences, of names and sentences, comes apart
_CHOICE = re.compile(r"'([^']*)' if .+ else '([^']*)'")
_HALVES = (":", ";", "(")
_BRACE = re.compile(r"[{}]")
_QUANTITY = re.compile(r"[\d.,]+ ?[\w/%]*")  # what stands in a sentence of few letters
_MOST_WORK, _LONGEST = 100, 4000  # texts looked at for one, characters: a courtesy may not take long


def is_japanese(environment: Mapping[str, str] = os.environ) -> bool:
    """Is Japanese what the person reads? JMEDLITE_LANG, else the locale, else the system's own language."""
    if (chosen := environment.get(SETTING, "").lower()[:2]) in ("ja", "en"):
        return chosen == "ja"
    for name in _LOCALES:
        if locale := environment.get(name):
            return locale.lower().startswith("ja")
    return _system_is_japanese()


@functools.cache
def _system_is_japanese() -> bool:
    """The language of Windows' or macOS' own windows, where no variable says one."""
    try:
        import ctypes

        if sys.platform == "win32":
            return bool(ctypes.windll.kernel32.GetUserDefaultUILanguage() & 0x3FF == 0x11)  # LANG_JAPANESE
        if sys.platform == "darwin":
            pointer, utf_8 = ctypes.c_void_p, 0x08000100
            core = ctypes.CDLL("/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation")
            core.CFLocaleCopyPreferredLanguages.restype = core.CFArrayGetValueAtIndex.restype = pointer
            core.CFArrayGetValueAtIndex.argtypes = [pointer, ctypes.c_long]
            core.CFStringGetCString.argtypes = [pointer, ctypes.c_char_p, ctypes.c_long, ctypes.c_uint32]
            first = core.CFArrayGetValueAtIndex(core.CFLocaleCopyPreferredLanguages(), 0)
            text = ctypes.create_string_buffer(32)
            return bool(core.CFStringGetCString(first, text, len(text), utf_8)) and text.value.startswith(b"ja")
    except Exception:  # a courtesy, never a fault
        pass
    return False


def localized(text: str) -> str:
    """A sentence of ours in the person's language, its values kept; any other text, or part, as it is."""
    if not text or not is_japanese():
        return text
    return _catalogue().say(text)


def read_catalogue(path: Path) -> dict[str, str]:
    """The entries of a .mo file: https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html."""
    raw = path.read_bytes()
    n, originals, translations = struct.unpack_from("<8x3I", raw)

    def text(table: int, i: int) -> str:
        length, at = struct.unpack_from("<2I", raw, table + 8 * i)
        return raw[at : at + length].decode("utf-8")

    return {text(originals, i): text(translations, i) for i in range(n)}


def parts(entry: str) -> Iterator[tuple[str, bool]]:
    """An entry's pieces, in order: literal text (False), and the expressions of its values (True)."""
    literal, begin, depth, doubled = "", 0, 0, -1
    for brace in _BRACE.finditer(entry):
        at, c = brace.start(), brace[0]
        if not depth and (entry[at + 1 : at + 2] == c or at == doubled):  # {{ and }} are braces of the text
            if at == doubled:
                literal, begin, doubled = literal + entry[begin:at], at + 1, -1
            else:
                doubled = at + 1
        elif c == "{":
            if not depth:
                yield literal + entry[begin:at], False
                literal, begin = "", at + 1
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                yield entry[begin:at], True
                begin = at + 1
    yield literal + entry[begin:], False


class Template:
    """An entry with values, or one that is a part of a sentence: its text, and where other text stands."""

    def __init__(self, entry: str) -> None:
        split = list(parts(entry))
        self.entry = entry
        self.literals = [text for text, is_value in split if not is_value]
        self.values = [text for text, is_value in split if is_value]
        self.longest = max(self.literals, key=len)
        whole = "".join(self.literals)
        self.n_literal = len(whole) - whole.count(" ")
        self.n_letters = self.n_literal if self.n_literal >= 3 * _WEAK else sum(map(str.isalpha, whole))
        self.is_weak = self.n_letters < _WEAK
        self.is_tail = entry[0] in ",;:" or (entry[0] == " " and entry[1:2] not in (" ", "→"))
        self.is_head = entry.endswith((", ", ": ", "; ")) or (entry[-1] == " " and len(entry) > 20)

    def match(self, text: str, *, late: bool = False) -> tuple[str, list[str], str] | None:
        """What stands before the end of a sentence, the values, and what stands after the beginning of one.

        Each value ends where the next literal is first found, so that it takes no longer than the text is; `late`: the
        last but one where it is found last. Of values side by side the first is all of it.
        """
        first, *literals = self.literals
        at = text.find(first) if self.is_tail else 0
        if at < 0 or not text.startswith(first, at):
            return None
        head, at, found = text[:at], at + len(first), []
        ends = [_CHOICE.fullmatch(value) for value in self.values]
        for i, (choice, literal) in enumerate(zip(ends, literals, strict=True)):
            if choice:
                fits = [end for end in choice.groups() if text.startswith(end + literal, at)]
                end = at + len(max(fits, key=len)) if fits else -1
            elif i == len(literals) - 1 and not self.is_head:
                end = len(text) - len(literal) if text.endswith(literal) else -1
            elif not literal and ends[i + 1]:
                stops = [text.find(stop, at) for c in ends[i + 1].groups() if (stop := c + literals[i + 1])]  # type: ignore[union-attr]
                end = min((stop for stop in stops if stop >= 0), default=-1)
            elif not literal and (stop := next(filter(None, literals[i:]), "")):
                end = text.find(stop, at)
            elif not literal:
                end = len(text)
            elif late and i == len(literals) - 2:
                end = text.rfind(literal, at)
            else:
                end = text.find(literal, at)
            if end < at:
                return None
            found.append(text[at:end])
            at = end + len(literal)
        return (head, found, text[at:]) if self.is_head or at == len(text) else None


class Catalogue:
    """What is said of what: entries without values by their text, the others by the text around them."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = {entry: said for entry, said in entries.items() if entry and said}
        self._known: dict[str, tuple[str, int]] = {}  # of the sentence that is said
        self._work, self._lock = 0, threading.Lock()

    @functools.cached_property
    def templates(self) -> list[Template]:
        """The entries that are more than their text, made where the first sentence with values is said."""
        templates = [
            Template(entry) for entry in self.entries if "{" in entry or entry[0] in " ,;:" or entry[-1] == " "
        ]
        kept = [t for t in templates if t.n_letters and (t.values or t.is_tail or t.is_head)]
        return sorted(kept, key=self._order)

    @staticmethod
    def _order(t: Template) -> tuple[bool, int, int, str]:
        """Of entries that explain as much of a text, the first: it begins as the text does, and has few values."""
        return (not t.literals[0] or t.is_tail, len(t.values) if t.is_weak else 0, -t.n_literal, t.entry)

    def say(self, text: str) -> str:
        """The text, its known parts in the other language."""
        with self._lock:
            self._known, self._work = {}, _MOST_WORK
            return self._find(text)[0] if len(text) <= _LONGEST else text

    def _find(self, text: str) -> tuple[str, int]:
        """What is said for a text, and how many of its characters are known."""
        if text not in self._known:
            self._known[text] = text, 0  # a text is no part of itself
            self._known[text] = self._look(text)
        return self._known[text]

    def _look(self, text: str) -> tuple[str, int]:
        if said := self.entries.get(text):
            return "".join(part for part, _ in parts(said)) if "{" in said else said, len(text)
        bare = text.strip()
        if " " not in bare:
            return (self.entries[bare], len(bare)) if bare in self.entries else (text, 0)
        self._work -= 1
        if self._work < 0:
            return text, 0
        best = text, 0
        for template in self.templates:
            if template.longest in text and (found := self._fill(template, text)) and found[1] > best[1]:
                best = found
        if (found := self._apart(text))[1] > best[1]:
            best = found
        if bare != text and (inner := self._find(bare))[1] > best[1]:
            return inner
        return best

    def _fill(self, template: Template, text: str) -> tuple[str, int] | None:
        """The text as that entry's, where it is."""
        early = template.match(text)
        if not early:
            return None
        late = template.match(text, late=True)
        filled = [self._filled(template, *match) for match in ([early, late] if late and late != early else [early])]
        return max(filter(None, filled), key=lambda found: found[1], default=None)

    def _filled(self, template: Template, head: str, values: list[str], tail: str) -> tuple[str, int] | None:
        if template.is_weak and (head or tail or not all(map(_QUANTITY.fullmatch, values))):
            return None
        if any(value.endswith(_HALVES) for value in values):
            return None  # the end of one sentence, the beginning of another
        said: dict[str, str] = {}
        n_known = template.n_literal
        for i, (value, expression) in enumerate(zip(values, template.values, strict=True)):
            said[expression], n = self._value(value, expression)
            is_atom = " " not in value or bool(_QUANTITY.fullmatch(value))
            if template.n_letters < _FEW and i and not n and not is_atom:
                return None  # a sentence of somebody else's
            n_known += len(value) if is_atom else n
        begun, n_begun = self._value(head, "")
        ended, n_ended = self._value(tail, "")
        translation = parts(self.entries[template.entry])
        filled = "".join(said.get(part, part) if is_value else part for part, is_value in translation)
        return begun + filled + ended, n_known + n_begun + n_ended

    def _value(self, value: str, expression: str) -> tuple[str, int]:
        """A value, which may be a sentence or one of the words that its expression names."""
        is_word = f"'{value}'" in expression or expression == "doing" or "WORDS[" in expression
        return self._find(value) if is_word or " " in value else (value, 0)

    def _apart(self, text: str) -> tuple[str, int]:
        """A text whose parts are known, or some of them."""
        best = text, 0
        for joint in _JOINTS:
            at = text.find(joint)
            while at > 0:
                head, tail = text[:at], text[at + len(joint) :]
                closing = ")" if joint == " (" and tail.endswith(")") else ""
                tail = tail.removesuffix(closing)
                begun, n_begun = self._value(head, "")
                ended, n_ended = self._value(tail, "")
                if n_begun + n_ended > best[1]:
                    best = begun + joint + ended + closing, n_begun + n_ended
                at = text.find(joint, at + 1)
        return best


@functools.cache
def _catalogue() -> Catalogue:
    try:
        return Catalogue(read_catalogue(CATALOGUE))
    except (OSError, ValueError, struct.error):  # a damaged installation speaks English
        return Catalogue({})

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
from collections.abc import Iterator, Mapping
from pathlib import Path

CATALOGUE = Path(__file__).parent.parent / "locale" / "ja" / "LC_MESSAGES" / "jmedlite.mo"
SETTING = "JMEDLITE_LANG"
_LOCALES = ("LC_ALL", "LC_MESSAGES", "LANG")
_WEAK = 5  # letters in a sentence around its values; with fewer, it may be anybody's
_JOINTS = ("\n", "; ", ": ", " (", ", ")  # where a text of several sentences, of names and sentences, comes apart
_QUANTITY = re.compile(r"[\d.,]+ ?\w*|\S*")  # what stands in a sentence of few letters
_DEEPEST, _LONGEST = 6, 4000


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
            from ctypes import c_char_p, c_long, c_uint32, c_void_p

            library = ctypes.CDLL("/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation")
            library.CFLocaleCopyPreferredLanguages.restype = c_void_p
            library.CFArrayGetValueAtIndex.restype, library.CFArrayGetValueAtIndex.argtypes = c_void_p, [c_void_p, c_long]
            library.CFStringGetCString.argtypes = [c_void_p, c_char_p, c_long, c_uint32]
            first = library.CFArrayGetValueAtIndex(library.CFLocaleCopyPreferredLanguages(), 0)
            text = ctypes.create_string_buffer(32)
            return bool(library.CFStringGetCString(first, text, 32, 0x08000100)) and text.value.startswith(b"ja")  # UTF-8
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
    literal, at = "", 0
    while at < len(entry):
        c = entry[at]
        if c in "{}" and entry[at : at + 2] == c * 2:
            literal, at = literal + c, at + 2
        elif c == "{" and (end := _closing(entry, at)):
            yield literal, False
            yield entry[at + 1 : end], True
            literal, at = "", end + 1
        else:
            literal, at = literal + c, at + 1
    yield literal, False


def _closing(entry: str, at: int) -> int:
    depth = 0
    for i in range(at, len(entry)):
        depth += {"{": 1, "}": -1}.get(entry[i], 0)
        if not depth:
            return i
    return 0


class Template:
    """An entry with values, or one that is a part of a sentence: its text, and where other text stands."""

    def __init__(self, entry: str) -> None:
        split = list(parts(entry))
        self.entry = entry
        self.literals = [text for text, is_value in split if not is_value]
        self.values = [text for text, is_value in split if is_value]
        self.longest = max(self.literals, key=len)
        self.n_letters = sum(c.isalpha() for text in self.literals for c in text)
        self.n_literal = sum(map(len, self.literals))
        self.is_tail = entry[0] in ",;:" or (entry[0] == " " and entry[1:2] not in (" ", "→"))
        self.is_head = entry.endswith((", ", ": ", "; "))

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """What stands before the end of a sentence, the values, and what stands after the beginning of one."""
        body = "(.*?)".join(map(re.escape, self.literals))
        return re.compile(f"({'.*?' if self.is_tail else ''}){body}({'.*' if self.is_head else ''})", re.DOTALL)


class Catalogue:
    """What is said of what: entries without values by their text, the others by the text around them."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = {entry: said for entry, said in entries.items() if entry and said}
        templates = [Template(entry) for entry in self.entries if "{" in entry or entry[0] in " ,;:" or entry[-1] == " "]
        kept = [t for t in templates if t.n_letters and (t.values or t.is_tail or t.is_head)]
        self.templates = sorted(kept, key=lambda t: (not t.literals[0] or t.is_tail, -t.n_literal, t.entry))
        self._known = functools.lru_cache(1024)(self._find)

    def say(self, text: str) -> str:
        """The text, its known parts in the other language."""
        return self._known(text, 0)[0]

    def _find(self, text: str, depth: int) -> tuple[str, int]:
        """What is said for a text, and how many of its characters are known."""
        if said := self.entries.get(text):
            return "".join(part for part, _ in parts(said)) if "{" in said else said, len(text)
        bare = text.strip()
        if depth > _DEEPEST or len(text) > _LONGEST or " " not in bare:
            return (text.replace(bare, self.entries[bare]), len(bare)) if bare in self.entries else (text, 0)
        best = self._apart(text, depth)
        for template in self.templates:
            if template.longest in text and (found := self._fill(template, text, depth)) and found[1] > best[1]:
                best = found
        if bare != text and (inner := self._known(bare, depth + 1))[1] > best[1]:
            return text.replace(bare, inner[0]), inner[1]
        return best

    def _fill(self, template: Template, text: str, depth: int) -> tuple[str, int] | None:
        """The text as that entry's, where it is."""
        if not (match := template.pattern.fullmatch(text)):
            return None
        head, *values, tail = match.groups()
        if template.n_letters < _WEAK and (head or tail or not all(map(_QUANTITY.fullmatch, values))):
            return None
        said: dict[str, str] = {}
        n_known = template.n_literal
        for value, expression in zip(values, template.values, strict=True):
            said[expression], n = self._value(value, expression, depth + 1)
            n_known += n
        begun, n_begun = self._value(head, "", depth + 1)
        ended, n_ended = self._value(tail, "", depth + 1)
        translation = parts(self.entries[template.entry])
        filled = "".join(said.get(part, part) if is_value else part for part, is_value in translation)
        return begun + filled + ended, n_known + n_begun + n_ended

    def _value(self, value: str, expression: str, depth: int) -> tuple[str, int]:
        """A value, which may be a sentence or one of the words that its expression names."""
        is_word = f"'{value}'" in expression or f'"{value}"' in expression
        return self._known(value, depth) if is_word or " " in value else (value, 0)

    def _apart(self, text: str, depth: int) -> tuple[str, int]:
        """A text whose parts are known, or some of them."""
        best = text, 0
        for joint in _JOINTS:
            at = text.find(joint)
            while at > 0:
                head, tail = text[:at], text[at + len(joint) :]
                closing = ")" if joint == " (" and tail.endswith(")") else ""
                tail = tail.removesuffix(closing)
                begun, n_begun = self._value(head, "", depth + 1)
                ended, n_ended = self._value(tail, f"'{tail}'", depth + 1)
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

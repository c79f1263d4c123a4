"""Make the catalogue of what the command line says in Japanese, jmedlite/locale/ja, from the code.

python tools/make_catalogue.py          what is new gets an empty entry in the .po, what is gone leaves; writes the .mo
python tools/make_catalogue.py --check  says what is missing or too much, and writes nothing

A sentence's entry is the sentence as it stands in the source: an f-string with its expressions, conversions and format
specifications left out. Every prose in the packages is one, with the exceptions below.
"""

from __future__ import annotations

import ast
import io
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from jmedlite.base.language import parts

ROOT = Path(__file__).parent.parent
PO = ROOT / "jmedlite" / "locale" / "ja" / "LC_MESSAGES" / "jmedlite.po"
HEAD = "What the command line says in Japanese. Made by tools/make_catalogue.py; write msgstr only."
START = datetime(2026, 11, 28, tzinfo=UTC)  # so that the same sentences give the same bytes
PLURAL = re.compile(r"^'e?s' if |len\(names\)$")  # Japanese has no plural
PACKAGES = ("jmedlite", "convert", "benchmarks")
# files whose words are a page's, a document's or another program's; what they raise is said all the same
ONLY_FAULTS = (
    *(f"benchmarks/report/{name}.py" for name in (
        "ages", "baselines", "cautions", "claims", "compare", "costs", "distances", "document", "exports", "flips",
        "groups", "labels", "numbers", "page", "paper", "papers", "plots", "points", "sections", "verdict",
        "words_exams",
    )),
    "benchmarks/prompts/",
    "benchmarks/views.py",
    "jmedlite/api/stick/",
)  # fmt: skip
# read by programs: what the server answers, what settings mean in docs, an installer that runs by itself, texts and
# words that are looked for
NOT_FOR_PEOPLE = (
    "jmedlite/serve/answering.py",
    "jmedlite/serve/app.py",
    "jmedlite/serve/guard.py",
    "jmedlite/serve/replies.py",
    "jmedlite/serve/requests.py",
    "jmedlite/runtime/thoughts.py",
    "jmedlite/base/lean.py",
    "convert/encoding/blocks.py",
    "jmedlite/__init__.py",
)
# tables of words and of fragments: each string in them is one, a single word too
TABLES = re.compile(r"LABELS|HELP|_REFUSED|[A-Z_]*WORDS")
CLI_TABLES = re.compile(r"rows|columns|gpus|built|shapes|listing|COLUMNS")
# told apart by programs, or shown as they are
AS_THEY_ARE = frozenset({
    "--cluster", "--text", ".bias", "https", "http", "utf-8", "replace", "jmedlite", "items.jsonl", "README.html",
    "temporary directory", "failed to map segment", "memory allocation of", "too long", "Extra data",
    "deserialization of the task graph", "failed to compile JSON schema: ", "Unsatisfiable schema: ", "ja, en",
    "Which nerve innervates the deltoid?", "left", "right", "compute", "total", "driver", "llama-cpp-python",
    "failed to quantize: ", "rope_type", "layer_types", "sliding_window_pattern", "rope type dynamic", "report run",
    "bench gguf --task igakuqa=IgakuQA -o run", "a child's events end with done, or with an exception",
    "python tools/build_runtime.py {folder} --wheelhouse", "{self.server.root}{path}: data",
    "%llguidance {{\"no_forcing\": true}}\nstart: %json {json.dumps({**form, 'x-guidance': FORM})}\n",
    "{'https' if options.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/",
    "For research only, not for diagnosis or treatment.",  # in the question's language
    "You are an assistant with broad knowledge of medicine. Answer accurately and concisely, and say so when you "
    "are not sure.",
    "reserve comes first", "answers come in order", " and ", " or ", " and in ",
})  # fmt: skip
SAYING = re.compile(
    r"system_fault|\w*(Error|Fault|Missing|Unavailable|CannotCreate|Busy|NotPermitted|ContextFull|DataError)"
)
NOT_SAID = re.compile(
    r"(re\.)?(compile|match|search|sub|fullmatch|finditer)|getLogger|environ\.\w+|\w*\.encode|literal_eval"
)
_ALL_VALUES = re.compile(r"[^a-zA-Z]*|jmedlite [^a-z]*|Bearer .*|--[a-z-]+ [^a-z]*")
_PLACE = re.compile(r"\{[^{}]*\}")
_PROSE = re.compile(r"[a-z]{2,}\S* +\S*[a-z]{2,}|[a-z]{2,}[^\s\0]* +\0|\0\S* +\(?[a-z]{2,}")
_WORD = re.compile(r"[a-z]{3,}|[a-z]{2} [a-z]{2}")
_LETTERS = re.compile(r"[a-z]{2}")


def sources() -> Iterator[Path]:
    """The packages' files, in order."""
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def msgid(node: ast.AST) -> str:
    """The entry of a string, or of an f-string."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr)
    parts = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            parts.append("{" + ast.unparse(part.value) + "}")
        else:
            assert isinstance(part, ast.Constant)
            parts.append(str(part.value).replace("{", "{{").replace("}", "}}"))
    return "".join(parts)


class Extractor:
    """What of a file is prose that a person may be shown."""

    def __init__(self, tree: ast.Module, name: str) -> None:
        self.tree, self.name = tree, name
        self.found: list[tuple[int, str]] = []
        self._is_shown = False
        self.only_faults = name.startswith(ONLY_FAULTS)
        self.in_cli = name.startswith("jmedlite/cli/")

    def sentences(self) -> list[tuple[int, str]]:
        """Each with its line."""
        if self.in_cli:
            commands = [n for n in self.tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
            stem = Path(self.name).stem
            self.found += [(c.lineno, ast.get_docstring(c) or "") for c in commands if c.name == stem]
        self._visit(self.tree, said=False, fault=False)
        return self.found

    def _visit(self, node: ast.AST, *, said: bool, fault: bool) -> None:
        always = False
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.Compare | ast.Subscript | ast.Match):
            said = False
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if NOT_SAID.fullmatch(name):
                return
            called = name.rpartition(".")[2]
            if SAYING.fullmatch(called):
                said = fault = True
            elif called == "localized":
                always = True
            elif name.startswith("console."):
                said = True
            elif called in ("getattr", "get", "startswith", "endswith", "removeprefix", "removesuffix", "encode"):
                said = False
        if isinstance(node, ast.keyword) and node.arg == "help":
            said = True
        if isinstance(node, ast.Raise):
            fault = True
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            self._is_shown = any(ast.unparse(t) == "columns" for t in targets)  # where keys are headings
            tables = CLI_TABLES if self.in_cli else TABLES
            said = said or any(t.fullmatch(ast.unparse(target)) for target in targets for t in (TABLES, tables))
        if isinstance(node, ast.Constant | ast.JoinedStr):
            self._take(node, _WORD if said else _PROSE, fault)
        for one in node.args if always and isinstance(node, ast.Call) else ():
            self._take(one, _LETTERS, fault)
        for field, child in ast.iter_fields(node):
            if isinstance(node, ast.arg | ast.AnnAssign) and field == "annotation" and not self.in_cli:
                continue
            for one in child if isinstance(child, list) else [child]:
                if isinstance(node, ast.JoinedStr):
                    if isinstance(one, ast.FormattedValue):
                        self._visit(one.value, said=True, fault=fault)
                elif isinstance(node, ast.Dict) and field == "keys" and isinstance(one, ast.AST):
                    self._visit(one, said=said and self.in_cli and self._is_shown, fault=fault)
                elif isinstance(one, ast.AST):
                    self._visit(one, said=said, fault=fault)

    def _take(self, node: ast.AST, pattern: re.Pattern[str], fault: bool) -> None:
        if not isinstance(node, ast.JoinedStr) and not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            return
        if self.only_faults and not fault:
            return
        text = msgid(node)
        if text in AS_THEY_ARE:
            return
        bare = _PLACE.sub("\0", text)
        if pattern.search(bare) and not _ALL_VALUES.fullmatch(bare.replace("\0", "")):
            self.found.append((node.lineno, text))


def code_messages() -> dict[str, list[tuple[str, int]]]:
    """Every sentence of the code, with the places where it stands."""
    found: dict[str, list[tuple[str, int]]] = {}
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        if name in NOT_FOR_PEOPLE:
            continue
        for line, text in Extractor(ast.parse(path.read_bytes()), name).sentences():
            if text:
                found.setdefault(text, []).append((name, line))
    return found


def read() -> Catalog:
    """The catalogue as it is."""
    with PO.open("rb") as file:
        return read_po(file, locale="ja", domain="jmedlite")


def update(catalog: Catalog) -> Catalog:
    """The same for the sentences of today: what is new is empty, what is gone is left out."""
    made = Catalog(
        locale="ja", domain="jmedlite", project="jmedlite", header_comment="# " + HEAD, fuzzy=False,
        creation_date=START, revision_date=START, last_translator="", language_team="",
    )  # fmt: skip
    for text, places in code_messages().items():
        known = catalog.get(text)
        made.add(text, known.string if known else "", locations=[(places[0][0], None)])  # type: ignore[list-item]
    return made


def as_po(catalog: Catalog) -> bytes:
    file = io.BytesIO()
    write_po(file, catalog, width=0, sort_output=False)
    return file.getvalue()


def as_mo(catalog: Catalog) -> bytes:
    file = io.BytesIO()
    write_mo(file, catalog)
    return file.getvalue()


def faults(catalog: Catalog) -> Iterator[str]:
    """What is missing, too much, or lost in a translation."""
    messages = code_messages()
    for text, places in messages.items():
        entry = catalog.get(text)
        if not (entry and entry.string) or entry.fuzzy:
            yield f"{places[0][0]} line {places[0][1]}: has no Japanese: {text}"
            continue
        wanted = {value for value, is_value in parts(text) if is_value}
        given = {value for value, is_value in parts(str(entry.string)) if is_value}
        if given - wanted or {value for value in wanted - given if not PLURAL.search(value)}:
            yield f"{places[0][0]} line {places[0][1]}: has other values in Japanese: {text}"
    for entry in catalog:
        if entry.id and entry.id not in messages:
            yield f"{PO.name}: is no sentence any more: {entry.id}"


def main(arguments: Iterable[str]) -> int:
    catalog = read()
    if "--check" not in arguments:
        catalog = update(catalog)
        PO.write_bytes(as_po(catalog))
        PO.with_suffix(".mo").write_bytes(as_mo(catalog))
    found = list(faults(catalog))
    if PO.with_suffix(".mo").read_bytes() != as_mo(catalog):
        found.append(f"{PO.stem}.mo is not what {PO.name} says: run this tool without --check")
    print("\n".join(found) or f"{len(catalog)} sentences, each in Japanese")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The command line in Japanese: the catalogue is the code's, messages are whole, and what programs read is English."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_group
from typer.testing import CliRunner

from jmedlite.base import language
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.language import CATALOGUE, is_japanese, localized, parts, read_catalogue
from jmedlite.cli import console
from jmedlite.cli.app import COMMANDS, app
from jmedlite.runtime.sampling import Sampling
from tests.support.scripts import load_tool

ROOT = Path(__file__).parent.parent.parent
JAPANESE = {"JMEDLITE_LANG": "ja"}
PROSE = re.compile(r"(?<![\w./-])[a-z]{2,},? [a-z]{2,}(?![\w./-])")
AS_TYPED = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"|^ *(使い方: |-).*|jmedlite .*|https?:\S+", re.MULTILINE)


@pytest.fixture
def japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMEDLITE_LANG", "ja")


def test_the_catalogue_is_the_codes() -> None:
    tool = load_tool("make_catalogue")
    catalogue = tool.read()
    assert list(tool.faults(catalogue)) == [], "run tools/make_catalogue.py, and fill in what is new"
    written = {str(e.id): str(e.string) for e in catalogue if e.id}
    assert {entry: said for entry, said in read_catalogue(CATALOGUE).items() if entry} == written


def test_one_word_for_one_thing() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs" / "terms.md").read_text("utf-8"), re.M)[
        2:
    ]
    texts = {"the catalogue": "\n".join(read_catalogue(CATALOGUE).values())}
    pages = [
        *(ROOT / name for name in ("README.ja.md", "docs/hospital.ja.md", "docs/install.md", "tools/build_backend.py")),
        *(ROOT / "jmedlite/serve/page").glob("*.js"),
        *(ROOT / "jmedlite/api/stick").glob("*.*"),
    ]
    texts |= {page.name: page.read_text("utf-8") for page in pages}
    assert len(rows) > 40
    for _, right, wrong in rows:
        for word in wrong.split("、"):
            longer = "".join(f"(?!{re.escape(r[len(word) :])})" for r in right.split("、") if r.startswith(word))
            found = [name for name, text in texts.items() if re.search(re.escape(word) + longer, text)]
            assert not found, f"{word}: is {right} in docs/terms.md"


def filled(entry: str) -> tuple[str, list[str]]:
    """A message of an entry, with values that are nobody's."""
    values: dict[str, str] = {}
    pieces = [values.setdefault(part, f"v{len(values)}/7") if is_value else part for part, is_value in parts(entry)]
    return "".join(pieces), list(values.values())


def test_no_value_is_lost(japanese: None) -> None:
    n = 0
    for entry, said in read_catalogue(CATALOGUE).items():
        text, values = filled(entry)
        if not values or " if " in entry:
            continue
        n += 1
        shown, dropped = localized(text), entry.count("{") - said.count("{")
        assert sum(value not in shown for value in values) <= max(0, dropped), f"{text} → {shown}"
    assert n > 700


MESSAGES = (
    "nothere.gguf: no such GGUF file; in that folder there are a.gguf, b.gguf and 3 more",
    "no model given, and none quantized yet; run `jmedlite quantize MODEL`, or give -m FILE",
    "--bits 9: expected one of 2, 3, 4, 5, 6, 8, 16",
    "--lang fr: expected ja or en",
    "the question is empty; give it as an argument or on standard input",
    "--host 0.0.0.0: questions would cross the network unencrypted; give --tls-cert and --tls-key, or --behind-proxy "
    "where a proxy encrypts",
    "/x/y.gguf: exists; give --overwrite to replace it, or another --out or --name",
    "m.gguf: truncated in tensor blk.0.attn_q.weight: needs 5,147 bytes, has 5,139; copy or download the file again",
    "m.gguf: is not what its manifest says (another SHA-256), so it is damaged or another file; make or copy it again",
    "m.json: files[0]: is \"Q8_0\", expected an object",
    "run.json: created: is null, expected text",
    "pytorch_model.bin: its pickle wants `os.system`; only plain tensors are read, nothing is executed; get the model "
    "as safetensors",
    "t.jsonl, line 2: choices, number 2, is empty; mend the row, or leave such rows out with --skip-bad",
    "config.json: beta_fast of its yarn rope settings is 8; llama.cpp computes with 32",
    "adapter a.gguf: blk.0.attn_q.weight has no lora_b",
    "m: the checkpoint lacks model.embed_tokens.weight and 3 more",
    "/x/m.gguf: writing is not permitted (EACCES); choose another folder (--out)",
    "/x/m.gguf: flushing to disk failed (EIO)",
    "/x/m.gguf: the disk is full; partial files were removed, free some space and run again",
    "/x: another run is writing there; wait for it or choose another --out",
    "memory ran out; close other programs, or choose something smaller",
    "m.gguf with a context of 4,096 tokens needs 9.1 GB of RAM (8.0 GB weights, 1.0 GB cache) and a margin of 0.5 GB, "
    "4.0 GB are free; what fits: the level Q3_K_M with a context of up to 2,048 tokens (--force tries all the same)",
    "the process that runs the model was killed, most likely because memory ran out; use a narrower level, a smaller "
    "--ctx or --kv-type q8_0",
    "own/er: the Hub can't be reached (timeout); connect, or use a local folder",
    "the JSON schema can't be used: #/pattern: the pattern has more than 5,000 characters",
    "JMEDLITE_ASK_MODLE: no setting has this name; is JMEDLITE_ASK_MODEL meant?",
    "m: 7,616 M weights, Qwen2/2.5, licence: not stated in the model card",
    "  + adapter a × 1, changes 196 weights, replaces 3, trained on x/y",
    "  → Q8_0, Q4_K_M: 2.2 MB in 2 file(s)",
    "/x/m-Q8_0.gguf  1.4 MB  8.54 bits per weight",
    "yes: m-Q8_0.gguf is m + a; 27 tensors are identical, 2 within 0.001",
    "m.gguf: NO, 3 of 27 tensors are not what m gives: single tensors differ: damaged, or changed afterwards",
    "on the processor; context up to 2,048 tokens (f16); RAM 0.1 GB of 22.1 GB available",
    "5 of 29 layers on GPU0 4.1 GB of 7.9 GB; context 2,048 tokens (f16); RAM 0.1 GB of 22.1 GB available",
    "(the answer was cut at 512 tokens; raise --max-tokens for more)",
    "load 0.10 s, prompt 182 tokens (0 from the cache) in 0.02 s, first token after 0.03 s, 5 tokens (2 of them a "
    "thought) at 16.4/s",
    "(a new conversation, c.json stays as it is)",
    "\ndone in 57 s; everything is in demo, the report: demo/run/report.html",
    "\n1. merge the adapter and quantize, seven levels in one pass\n   with a real model: jmedlite quantize MODEL",
    "1,234 results in runs/x (resumed)",
    "for Windows, x86-64, Python 3.12: 120.0 MB",
    "SHA-256 of its SHA256SUMS, which vouches for all of it: 0a1b",
    "key (shown this once): Zm9v",
    "33 weights saw no token, such as blk.0.ffn; they are not in the file",
    "qwen2, 2 layers, 267 tokens, trained on contexts of 512",
    "273.4 kB of 2.6 MB",
)  # fmt: skip


@pytest.mark.parametrize("text", MESSAGES)
def test_a_message_is_japanese_with_its_values(japanese: None, text: str) -> None:
    shown = localized(text)
    assert re.search("[ぁ-んァ-ヶ一-龥]", shown)
    assert not PROSE.search(AS_TYPED.sub("", shown)), shown
    for value in re.findall(r"[\w.,/-]*\d[\w.-]*|--[a-z-]+|`[^`]+`", text):
        assert value in shown


@pytest.mark.parametrize(
    "text",
    [
        "a sentence of somebody else, which is none of ours: at all; memory", "/my files/level and memory.gguf",
        "level",
        "{", "{{x} y: z}", "a: b; c (d)", " ", "\n", "いま: the end", "x" * 5000 + " and 3 more",
    ],
)  # fmt: skip
def test_what_is_not_ours_stays(japanese: None, text: str) -> None:
    assert localized(text) == (text if text != "level" else "レベル")


def test_long_and_hostile_texts_take_no_longer(japanese: None) -> None:
    localized("a: b")
    work = language._catalogue()
    for text in (": ".join(["is (x)"] * 500), "; ".join("a has no b" for _ in range(200)), " of " * 900):
        work.say(text)
        assert len(work._known) < 20_000


@pytest.mark.parametrize("command", ["", *(c.__name__ for c in COMMANDS)])
def test_help(command: str) -> None:
    arguments = [*command.split(), "--help"]
    shown = CliRunner().invoke(app, arguments, env=JAPANESE, terminal_width=80)
    assert shown.exit_code == 0
    options = re.sub(r"(?m)^  -.*?  +|\[[^\]]*\]|<[^>]*>", "", AS_TYPED.sub("", shown.output))
    assert not PROSE.search(options), PROSE.search(options)
    assert "オプション:" in shown.output
    from rich.cells import cell_len

    assert max(map(cell_len, shown.output.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantise"], "エラー: 'quantise' というコマンドはありません。'quantize' のことですか。"),
        (["ask", "--foo"], "エラー: そのようなオプションはありません: --foo（近いもの: --force）"),
        (["ask", "--max-tokens", "x"], "エラー: '--max-tokens' の値が正しくありません: 整数として読めません"),
        (["verify"], "エラー: 引数 'GGUF' がありません。"),
        (["ask", "--seed"], "エラー: オプション '--seed' には値が必要です。"),
    ],
)
def test_faults_of_typing(arguments: list[str], said: str) -> None:
    shown = CliRunner().invoke(app, arguments, env=JAPANESE)
    assert shown.exit_code == 2
    assert said in shown.output
    assert CliRunner().invoke(app, arguments).output != shown.output


@pytest.mark.parametrize(
    ("environment", "japanese"),
    [
        ({"JMEDLITE_LANG": "ja", "LANG": "en_US.UTF-8"}, True), ({"JMEDLITE_LANG": "en", "LC_ALL": "ja_JP"}, False),
        ({"JMEDLITE_LANG": "fr", "LANG": "ja_JP.UTF-8"}, True), ({"LC_ALL": "C", "LANG": "ja_JP.UTF-8"}, False),
        ({"LC_MESSAGES": "ja_JP.UTF-8", "LANG": "C"}, True), ({"LANG": "de_DE"}, False),
        ({"LC_ALL": "", "LANG": "ja"}, True),
    ],
)  # fmt: skip
def test_which_language(environment: dict[str, str], japanese: bool) -> None:
    assert is_japanese(environment) == japanese


def test_programs_read_english(japanese: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--stop: expected up to"):
        Sampling(stop=("",))
    console.document({"reason": "memory ran out; close other programs, or choose something smaller"})
    assert json.loads(capsys.readouterr().out)["reason"].startswith("memory ran out")


def test_long_faults_are_cut_after_they_are_said(japanese: None, capsys: pytest.CaptureFixture[str]) -> None:
    fault = DataError(
        f"{'x' * 700}.gguf: has the entry 'a' twice; make it again with `jmedlite imatrix` or llama-imatrix"
    )
    console.error(fault.whole)
    shown = capsys.readouterr().err
    assert "作り直してください" in shown
    assert len(shown) < 620


def test_a_damaged_catalogue_speaks_english(japanese: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.mo").write_bytes(b"\xde\x12\x04\x95" + b"\0" * 8)
    for path in (tmp_path / "x.mo", tmp_path / "none.mo"):
        monkeypatch.setattr(language, "CATALOGUE", path)
        language._catalogue.cache_clear()
        assert localized("memory ran out; close other programs, or choose something smaller").startswith("memory")
    language._catalogue.cache_clear()


def test_every_command_speaks() -> None:
    assert set(get_group(app).commands) == {c.__name__ for c in COMMANDS}

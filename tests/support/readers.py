"""Every reader of JSON from outside, on a right document and on whatever stands in its place: for fuzzing."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

import jmedlite
from jmedlite.api.made_models import MadeModel, made_models, remember_models
from jmedlite.base import kept
from jmedlite.base.errors import JmedliteError, UsageError
from jmedlite.base.manifest import read_manifest
from jmedlite.benchmarks.backends import http, responses
from jmedlite.benchmarks.report.document import Options, summarise
from jmedlite.benchmarks.report.read import read_run
from jmedlite.benchmarks.scoring import score
from jmedlite.benchmarks.tasks.items import Item
from jmedlite.benchmarks.tasks.load import load_task
from jmedlite.calibration.overlap import read_task
from jmedlite.convert.adapters.mlx import MlxAdapter
from jmedlite.convert.adapters.peft import PeftAdapter
from jmedlite.convert.sources.checkpoint import read_safetensors_header
from jmedlite.convert.sources.checkpoint_model import CheckpointModel
from jmedlite.convert.sources.tensors import Files
from jmedlite.runtime.bounded import limited_memory
from jmedlite.runtime.conversation import Conversation
from tests.support import builders, packed, runs, tasks

# What stands where something else was expected: well-formed JSON, all of it.
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 1 << 31, 1 << 63, -(1 << 64), 10**400, 0.5, -0.0, 1e308, float("inf"),
    float("nan"), "", "x", "0", "\ud800", "a\0b", "\u202e", "長" * 3000, "../x", [], [None], [[]], ["x"], [1, "x"], {},
    {"x": 1}, {"": {}}, [[[[[[[[[]]]]]]]]], list(range(300)), {"type": []}, {"content": {}},
)  # fmt: skip

Choose = Callable[[int], int]  # a number below another: hypothesis' or a generator's


def bend(document: Any, choose: Choose) -> Any:
    """The document with something strange in one place: another value, none, one more, or one that stands elsewhere."""
    document = json.loads(json.dumps(document))
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)):
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                walk(inner[key])

    walk(document)
    # alike as often at every depth: most places of a tokenizer are tokens
    where, key = places[choose(min(len(places), 40)) if choose(2) else choose(len(places))]
    match choose(8):
        case 0:
            del where[key]
        case 1 if isinstance(where, dict):
            where[("", "x", "長", "\ud800", "__metadata__")[choose(5)]] = where[key]
        case 2:
            other, at = places[choose(len(places))]
            with contextlib.suppress(KeyError, IndexError):  # what was deleted
                where[key] = json.loads(json.dumps(other[at]))
        case 3 if isinstance(where[key], list) and where[key]:
            where[key] = [*where[key], where[key][0]]
        case _:
            where[key] = STRANGE[choose(len(STRANGE))]
    return document


def _lines(document: Any) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in document).encode()


def _of_lines(raw: bytes) -> Any:
    return [json.loads(line) for line in raw.splitlines()]


@dataclass(frozen=True)
class Reader:
    """`feed` reads the bytes that `encode` makes of what stands in place of `right`: JmedliteError where it is none."""

    right: Any
    feed: Callable[[bytes], object]
    encode: Callable[[Any], bytes] = lambda document: json.dumps(document).encode()
    decode: Callable[[bytes], Any] = json.loads

    def outcome(self, document: Any) -> str:
        """ "right" or the name of the fault; everything else that is raised is a finding."""
        try:
            raw = self.encode(document)
        except UsageError:
            return "no such file"
        return self.outcome_of(raw)

    def outcome_of(self, raw: bytes) -> str:
        """The same of bytes."""
        try:
            self.feed(raw)
        except JmedliteError as e:
            assert "\n" not in str(e), str(e)
            return type(e).__name__
        return "right"


def _of_file(path: Path, read: Callable[[], object], **form: Any) -> Reader:
    """A reader of one file among others."""
    right = path.read_bytes()

    def feed(raw: bytes) -> object:
        path.write_bytes(raw)
        try:
            return read()
        finally:
            path.write_bytes(right)

    return Reader(form.get("decode", json.loads)(right), feed, **form)


def _of_header(path: Path, read: Callable[[], object]) -> Reader:
    """A reader of a safetensors file's header, before the data that it has."""
    blob = path.read_bytes()
    (length,) = struct.unpack_from("<Q", blob)

    def header(document: Any) -> bytes:
        head = json.dumps(document).encode()
        return struct.pack("<Q", len(head)) + head + blob[8 + length :]

    return _of_file(
        path, read, encode=header, decode=lambda raw: json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    )


# Checkpoints whose weights are quantized already, one for each module that reads such
PACKED = {
    "nf4": "NF4, nested", "fp8": "FP8, 128×128", "gptq": "GPTQ, act-order", "ct": "compressed-tensors, zero points",
    "mlx4": "MLX, 4 bits",
}  # fmt: skip


def readers(folder: Path) -> dict[str, Reader]:
    """All of them, on files made in `folder`; $JMEDLITE_STATE must be `folder`/state."""
    base = builders.checkpoint(folder / "m", "llama", rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    (folder / "m" / "generation_config.json").write_text('{"eos_token_id": [2], "temperature": 0.7, "top_k": 3}')
    (folder / "m" / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": builders.SPECIALS[2], "lstrip": False}})
    )
    builders.checkpoint(folder / "shards", "llama", shards=2)
    builders.adapter(folder / "a", base, rank_pattern={"q_proj": 4})
    builders.checkpoint(folder / "mixture", "qwen3_moe")
    for name, method in PACKED.items():
        packed.checkpoint(folder / name, method)
    packed.mxfp4(folder / "mxfp4")
    builders.mlx_adapter(folder / "mlx", base)
    builders.checkpoint(folder / "unigram", "llama", vocab_size=300)
    (folder / "unigram" / "tokenizer.json").write_text(json.dumps(UNIGRAM))
    builders.tekken_checkpoint(folder / "tekken", builders.tekken([b"ab", b"abc"], ["<unk>", "<s>", "</s>"]))
    record = kept.record_of(folder / "kept-Q8_0.gguf")
    record.write_bytes(_lines(KEPT))

    def model(name: str = "m") -> object:
        files = Files()
        try:
            found = CheckpointModel(folder / name, files)
            return found.metadata(None, 1, next(s for s in found.specs if s.name == "token_embd.weight").shape[0], [])
        finally:
            files.close()

    whole = CheckpointModel(folder / "m", Files()).base()
    (made,) = jmedlite.quantize(folder / "m", lora=[str(folder / "a")], bits=[8], out=folder / "made")
    tasks.write_task(folder / "task.jsonl", 3)
    rows = [json.loads(line) for line in (folder / "task.jsonl").read_text(encoding="utf-8").splitlines()]
    runs.small(folder / "run", levels=("BF16", "Q8_0"), n=3, methods=("letter", "generate"))
    remember_models([MadeModel(name="m", level="Q8_0", path=str(made), sha256="0" * 64, bits_per_weight=8.5)])

    (folder / "m" / "README.md").write_bytes(_card(CARD))
    excluded = folder / "excluded.jsonl"
    long = "Which of the following organs makes the insulin that a healthy person needs every single day of a life?"
    excluded.write_bytes(_lines([{**row, "question": f"{long} {i}"} for i, row in enumerate(rows)]))
    chat = folder / "chat.json"
    chat.write_text(json.dumps(CHAT))

    def report() -> object:
        return summarise([read_run(folder / "run")], Options())

    found = {
        "manifest": _of_file(made.with_suffix(".json"), lambda: read_manifest(made)),
        "adapter_config.json": _of_file(
            folder / "a" / "adapter_config.json", lambda: PeftAdapter(folder / "a", whole).describe()
        ),
        "adapter_config.json of MLX": _of_file(
            folder / "mlx" / "adapter_config.json", lambda: MlxAdapter(folder / "mlx", whole).describe()
        ),
        **{
            f"config.json of {name}": _of_file(folder / name / "config.json", partial(model, name))
            for name in ("mixture", "mxfp4", *PACKED)
        },
        "tokenizer.json, unigram": _of_file(folder / "unigram" / "tokenizer.json", lambda: model("unigram")),
        "tekken.json": _of_file(folder / "tekken" / "tekken.json", lambda: model("tekken")),
        "kept record": _of_file(
            record, lambda: kept.find(folder / "kept-Q8_0.gguf"), encode=_lines, decode=_of_lines
        ),
        **{
            name: _of_file(folder / "m" / name, model)
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                         "special_tokens_map.json")
        },
        "index": _of_file(folder / "shards" / "model.safetensors.index.json", lambda: model("shards")),
        "run.json": _of_file(folder / "run" / "run.json", report),
        "models.json": _of_file(folder / "state" / "models.json", lambda: made_models().default()),
        "model card": _of_file(folder / "m" / "README.md", model, encode=_card, decode=_front),
        "saved chat": _of_file(chat, lambda: Conversation(NoRunner()).load(chat)),  # type: ignore[arg-type]
        "task rows": _of_file(
            folder / "task.jsonl", lambda: load_task(f"own={folder / 'task.jsonl'}"), encode=_lines, decode=_of_lines
        ),
        "overlap rows": _of_file(
            excluded,
            lambda: read_task(excluded),
            encode=_lines,
            decode=_of_lines,
        ),
        "answers": Reader(ANSWER, _answer),
        "models of a server": Reader(MODELS, _models),
    }  # fmt: skip
    for name in ("items", "questions", "measures", "noise"):
        found[f"{name}.jsonl"] = _of_file(folder / "run" / f"{name}.jsonl", report, encode=_lines, decode=_of_lines)
    path = folder / "m" / "model.safetensors"
    found["safetensors header"] = _of_header(path, lambda: read_safetensors_header(path))
    for name in (*PACKED, "mxfp4"):
        found[f"safetensors header of {name}"] = _of_header(folder / name / "model.safetensors", partial(model, name))
    if find_spec("pyarrow"):
        (folder / "task.parquet").write_bytes(_parquet(rows))
        found["parquet rows"] = _of_file(
            folder / "task.parquet",
            lambda: load_task(f"own={folder / 'task.parquet'}"),
            encode=_parquet,
            decode=_rows_of_parquet,
        )
    return found


# ---------------------------------------------------------------------------------------------------- other forms

CARD = {
    "license": "apache-2.0", "base_model": ["o/b"], "language": ["ja", "en"], "tags": ["medical"], "model_name": "M",
    "datasets": [{"name": "d", "repo_url": "https://huggingface.co/o/d"}],
}  # fmt: skip
KEPT = [
    {"format": 1, "plan": "0" * 64, "files": ["kept-Q8_0.gguf"]},
    {"tensors": [{"energy": 1.5, "errors": [0.25], "ways": [""]}], "sizes": [1024], "sha256": ["0" * 64]},
]
UNIGRAM = {
    "version": "1.0", "added_tokens": [{"id": 0, "content": "<unk>", "special": True, "normalized": False}],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": "(?<!\\n)^"}, "content": "▁"},
        {"type": "Replace", "pattern": {"Regex": " "}, "content": "▁"}]},
    "pre_tokenizer": None, "post_processor": None,
    "model": {
        "type": "Unigram", "unk_id": 0, "byte_fallback": True,
        "vocab": [["<unk>", 0.0], *([f"<0x{b:02X}>", -9.0] for b in range(256)), ["▁", -2.0], ["高血圧", -3.5]],
    },
}  # fmt: skip
CHAT = {
    "format": 1, "model": "m", "system": None, "language": "ja", "state": "0" * 32,
    "turns": [["user", "q"], ["assistant", "a"]],
}  # fmt: skip


def _card(document: Any) -> bytes:
    return f"---\n{yaml.safe_dump(document)}---\n# M\n".encode("utf-8", "surrogatepass")


def _front(raw: bytes) -> Any:
    return yaml.safe_load(raw.split(b"---\n")[1])


def _pyarrow() -> Any:
    import pyarrow.parquet

    return pyarrow.parquet


def _rows_of_parquet(raw: bytes) -> Any:
    """Bent bytes may unpack to anything: pyarrow itself has no bound."""
    with limited_memory(1 << 31):
        return _pyarrow().read_table(io.BytesIO(raw), use_threads=False).to_pylist()


def _parquet(rows: Any) -> bytes:
    """UsageError where rows have no form in parquet: then there is nothing to read."""
    import pyarrow

    out = io.BytesIO()
    try:
        _pyarrow().write_table(pyarrow.Table.from_pylist(rows), out)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, AttributeError, UnicodeError) as e:
        raise UsageError(f"no such parquet file: {' '.join(str(e).split())}") from None
    return out.getvalue()


class NoRunner:
    """Where a conversation is told what was saved; no model stands behind it."""

    def resume_state(self, name: str) -> bool:
        return False


# ------------------------------------------------------------------------------------------------------- a server

TOKEN = {"token": " A", "logprob": -1.0, "top_logprobs": [{"token": " A", "logprob": -1.0}]}
ANSWER: dict[str, Any] = {
    "choices": [
        {
            "text": " A", "message": {"content": "A"}, "finish_reason": "length", "stop_reason": None,
            "logprobs": {
                "tokens": ["a", " A"], "token_logprobs": [None, -1.0], "top_logprobs": [{" A": -1.0, " B": -2.0}],
                "content": [TOKEN],
            },
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    "error": None,
}  # fmt: skip
MODELS = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096, "meta": {"n_params": 7, "n_ctx": 512}}]}
ITEM = Item(id="1", question="q", choices=("x", "y"), answers=(0,), lang="en")


def _answer(raw: bytes) -> object:
    where = "http://x/v1/completions"
    parsed = http._parsed(raw)
    http._words_of(parsed)
    if not isinstance(parsed, dict):
        raise UsageError("no object")
    answer = responses.checked(parsed, where)
    choice = responses.choice_of(answer, where)
    n_prompt = responses.n_prompt_of(answer)
    scores, _ = responses.letter_scores(responses.top_tokens(choice, where), [" A", " B"])
    found: list[Any] = [score("letter", ITEM, (0, 1), {"n_prompt": n_prompt, "scores": scores, "n_tokens": [1, 1]})]
    for chat in (False, True):
        text = responses.text_of(choice, where, chat=chat)
        said = {"n_prompt": n_prompt, "response": text, "stop": str(choice.get("finish_reason"))}
        found.append(score("generate", ITEM, (0, 1), said))
    tokens, values = responses.echoed(answer, where)
    found.append([responses.log_probability(value, where) for value in values])
    return json.dumps([str(f) for f in found], ensure_ascii=False).encode("utf-8"), tokens


def _models(raw: bytes) -> object:
    from jmedlite.base.records import from_json

    parsed = http._parsed(raw)
    listed = parsed.get("data") if isinstance(parsed, dict) else None
    return from_json(listed or [], tuple[responses.ModelEntry, ...], "http://x/v1/models: data")

"""Every reader of JSON from outside, on a right document and on whatever stands in its place: for fuzzing."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jmedlite
from jmedlite.api.made_models import MadeModel, made_models, remember_models
from jmedlite.base.errors import JmedliteError, UsageError
from jmedlite.base.manifest import read_manifest
from jmedlite.benchmarks.backends import http, responses
from jmedlite.benchmarks.report.document import Options, summarise
from jmedlite.benchmarks.report.read import read_run
from jmedlite.benchmarks.scoring import score
from jmedlite.benchmarks.tasks.items import Item
from jmedlite.benchmarks.tasks.load import load_task
from jmedlite.convert.adapters.peft import PeftAdapter
from jmedlite.convert.sources.checkpoint import read_safetensors_header
from jmedlite.convert.sources.checkpoint_model import CheckpointModel
from jmedlite.convert.sources.tensors import Files
from tests.support import builders, runs, tasks

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


@dataclass(frozen=True)
class Reader:
    """`read` reads what stands in place of `right`, and raises JmedliteError where it is none."""

    right: Any
    read: Callable[[Any], object]

    def outcome(self, document: Any) -> str:
        """ "right" or the name of the fault; everything else that is raised is a finding."""
        try:
            self.read(document)
        except JmedliteError as e:
            assert "\n" not in str(e), str(e)
            return type(e).__name__
        return "right"


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def _of_file(path: Path, read: Callable[[], object]) -> Reader:
    """A reader of one JSON file among others."""
    right = _json(path)

    def replaced(document: Any) -> object:
        _write(path, document)
        try:
            return read()
        finally:
            _write(path, right)

    return Reader(right, replaced)


def readers(folder: Path) -> dict[str, Reader]:
    """All of them, on files made in `folder`; $JMEDLITE_STATE must be `folder`/state."""
    base = builders.checkpoint(folder / "m", "llama", rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    (folder / "m" / "generation_config.json").write_text('{"eos_token_id": [2], "temperature": 0.7, "top_k": 3}')
    (folder / "m" / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": builders.SPECIALS[2], "lstrip": False}})
    )
    builders.checkpoint(folder / "shards", "llama", shards=2)
    builders.adapter(folder / "a", base, rank_pattern={"q_proj": 4})

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

    def task(document: Any) -> object:
        (folder / "bent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in document), encoding="utf-8")
        return load_task(f"own={folder / 'bent.jsonl'}")

    def report() -> object:
        return summarise([read_run(folder / "run")], Options())

    found = {
        "manifest": _of_file(made.with_suffix(".json"), lambda: read_manifest(made)),
        "adapter_config.json": _of_file(
            folder / "a" / "adapter_config.json", lambda: PeftAdapter(folder / "a", whole).describe()
        ),
        **{
            name: _of_file(folder / "m" / name, model)
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                         "special_tokens_map.json")
        },
        "index": _of_file(folder / "shards" / "model.safetensors.index.json", lambda: model("shards")),
        "run.json": _of_file(folder / "run" / "run.json", report),
        "models.json": _of_file(folder / "state" / "models.json", lambda: made_models().default()),
        "task rows": Reader(rows, task),
        "answers": Reader(ANSWER, _answer),
        "models of a server": Reader(MODELS, _models),
    }  # fmt: skip
    for name in ("items", "questions", "measures", "noise"):
        found[f"{name}.jsonl"] = _of_lines(folder / "run" / f"{name}.jsonl", report)
    path = folder / "m" / "model.safetensors"
    blob = path.read_bytes()
    (length,) = struct.unpack_from("<Q", blob)

    def header(document: Any) -> object:
        head = json.dumps(document).encode()
        bent = folder / "bent.safetensors"
        bent.write_bytes(struct.pack("<Q", len(head)) + head + blob[8 + length :])
        return read_safetensors_header(bent)

    found["safetensors header"] = Reader(json.loads(blob[8 : 8 + length]), header)
    return found


def _of_lines(path: Path, read: Callable[[], object]) -> Reader:
    right = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def replaced(document: Any) -> object:
        kept = shutil.copy(path, path.with_suffix(".kept"))
        path.write_text("".join(json.dumps(line) + "\n" for line in document), encoding="utf-8")
        try:
            return read()
        finally:
            Path(kept).replace(path)

    return Reader(right, replaced)


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


def _answer(document: Any) -> object:
    raw, where = json.dumps(document).encode(), "http://x/v1/completions"
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


def _models(document: Any) -> object:
    from jmedlite.base.records import from_json

    parsed = http._parsed(json.dumps(document).encode())
    listed = parsed.get("data") if isinstance(parsed, dict) else None
    return from_json(listed or [], tuple[responses.ModelEntry, ...], "http://x/v1/models: data")

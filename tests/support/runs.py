"""Run folders as docs/runs.md has them, made in a test without any model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SIZES = {"BF16": 15.2, "Q8_0": 8.1, "Q6_K": 6.3, "Q5_K_M": 5.4, "Q4_K_M": 4.7, "Q3_K_M": 3.8, "Q2_K": 3.0}
GROUPS = ("循環器", "呼吸器", "消化管", "神経", "内分泌・代謝")


def model(level: str = "BF16", base: str = "qwen", **facts: Any) -> Record:
    """One entry of `models`."""
    size = int(SIZES.get(level, 5.0) * 1e9)
    return {
        "name": f"{base}-{level}", "file": f"{base}-{level}.gguf", "base": base, "level": level,
        "sha256": f"{abs(hash((base, level))):064x}"[-64:], "n_bytes": size, "n_params": 7_600_000_000,
        "bits_per_weight": size * 8 / 7.6e9, "architecture": "qwen2", "title": "Qwen2.5 7B", "license": "apache-2.0",
        "made_from": f"Qwen/Qwen2.5-7B-Instruct@{'a09a3545' * 5}", "imatrix": None, "adapters": [], **facts,
    }  # fmt: skip


def question(i: int, task: str = "exam-ja", **facts: Any) -> Record:
    """One line of questions.jsonl: five choices, of which one is right, and sometimes one harms."""
    lang = "en" if task.endswith("-en") else "ja"
    text = f"Question {i}: which is right?" if lang == "en" else f"問題{i}：正しいのはどれか。"
    return {
        "task": task, "id": f"q{i}", "question": text, "choices": [f"{c}{i}" for c in "abcde"], "answers": [i % 5],
        "lang": lang, "group": GROUPS[i % len(GROUPS)], "contraindicated": [(i + 2) % 5] if i % 4 == 0 else [],
        "human_accuracy": 80.0 + i % 10, "context": "", "excluded": None, **facts,
    }  # fmt: skip


def answer(q: Record, model: str, right: bool, method: str = "letter", **facts: Any) -> Record:
    """One line of items.jsonl, whose scores agree with whether it is right."""
    n, k = len(q["choices"]), len(q["answers"])
    picks = list(q["answers"]) if right else [(q["answers"][0] + 1 + j) % n for j in range(k)]
    scores = [-1.0 if i in picks else -2.0 - i / 10 for i in range(n)]
    found = {
        "model": model, "task": q["task"], "method": method, "id": q["id"], "permutation": 0, "order": list(range(n)),
        "status": "scored", "n_prompt": 200, "scores": scores, "picks": picks, "correct": right,
        "margin": min(scores[i] for i in picks) - max([scores[i] for i in range(n) if i not in picks] or [-9]),
    }  # fmt: skip
    if method == "letter":
        found["mass"] = sum(math.exp(s) for s in scores)
    if method == "text":
        found |= {"n_tokens": [3] * n, "per_token": {"picks": picks, "correct": right, "margin": 0.2}}
    if method == "generate":
        found |= {"response": q["choices"][picks[0]], "stop": "eos", "exact": right, "gestalt": 0.9, "parsed": True}
    return {**found, **facts}


def measure(model: str, round_: int = 0, **facts: Any) -> Record:
    """One line of measures.jsonl."""
    size = SIZES.get(model.rsplit("-", 1)[-1], 5.0) * 1e9
    return {
        "model": model, "round": round_, "n_ctx": 1024, "n_threads": 2, "n_gpu_layers": 0,
        "load_seconds": size / 4e9, "prompt_tokens": 512, "prompt_tps": 2.8e11 / size, "generation_tokens": 64,
        "generation_tps": 3.2e10 / size, "first_token_seconds": size / 6e9,
        "question_seconds": [size / 6e9 + j / 20 for j in range(8)], "peak_rss_bytes": int(size * 1.05 + 3e8),
        "peak_anonymous_bytes": int(3e8), "peak_file_bytes": int(size * 1.05), "kv_bytes": 58_720_256,
        "vram_bytes": None, **facts,
    }  # fmt: skip


def distances(models: Sequence[str], text: str | None = "exam-ja", n_chunks: int = 20, **facts: Any) -> list[Record]:
    """The lines of distance.jsonl for one text, the first model being the reference."""
    one = {
        "text": text, "text_sha256": f"{sum(map(ord, text or 'x')):064x}", "n_ctx": 512, "n_chunks": n_chunks,
        "n_tokens": 255 * n_chunks, "perplexity": 7.0, "perplexity_error": 0.1,
    }  # fmt: skip
    found = [{"model": models[0], "reference": None, **one}]
    for rank, name in enumerate(models[1:], 1):
        mean = 0.0015 * 4**rank * (1 + len(text or "") / 20)
        found.append({
            "model": name, "reference": models[0], **one, "log_ratio": 0.1, "log_ratio_error": 0.01, "kl_mean": mean,
            "kl_error": mean / 20, "kl_interval": [0.9 * mean, 1.12 * mean], "kl_median": mean / 2,
            "kl_quantiles": {"0.95": 3 * mean, "0.99": 9 * mean, "0.999": 31 * mean},
            "kl_quantile_intervals": {"0.99": [8 * mean, 10 * mean], "0.999": [25 * mean, 36 * mean]},
            "kl_max": 50 * mean, "top_agreement": 0.99 - 0.02 * rank, "top_agreement_error": 0.003, **facts,
        })  # fmt: skip
    return found


def ask(task: str, method: str = "letter", n: int = 0, **facts: Any) -> Record:
    """One entry of `asks`."""
    template = {"name": f"{method}-{task[-2:]}", "text": "{question}\n{choices}\n", "sha256": f"{method}-{task[-2:]}"}
    return {"task": task, "method": method, "template": template, "shots": [], "n_requests": n, "example": "…", **facts}


def write(
    folder: Path, models: Sequence[Record], questions: Sequence[Record], items: Sequence[Record], *,
    measures: Sequence[Record] = (), noise: Sequence[Record] = (), distance: Sequence[Record] = (),
    methods: Sequence[str] = ("letter",), settings: Record | None = None, **head: Any,
) -> Path:  # fmt: skip
    """A run folder; `run.json` follows from the questions."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(q["task"] for q in questions))
    tasks, asks = [], []
    for name in names:
        own = [q for q in questions if q["task"] == name]
        excluded: dict[str, int] = {}
        for q in own:
            if q["excluded"]:
                excluded[q["excluded"]] = excluded.get(q["excluded"], 0) + 1
        n_asked = len(own) - sum(excluded.values())
        tasks.append({
            "name": name, "task": name[:-3], "lang": name[-2:], "title": f"Exam ({name[-2:]})", "source": "made up",
            "revision": None, "license": "CC BY 4.0", "files": [{"name": f"{name}.jsonl", "sha256": "ab" * 32}],
            "n_items": len(own), "n_asked": n_asked, "excluded": excluded,
        })  # fmt: skip
        asks += [ask(name, method, n_asked) for method in methods]
    run = {
        "format": "jmedlite.run", "version": 1, "created": "2026-11-21T10:00:00+00:00", "jmedlite": "0.1.0",
        "llama_cpp_python": "0.3.36",
        "machine": {"system": "Linux", "cpu": "AMD EPYC", "cpu_features": "AVX2", "physical_cores": 2,
                    "ram_bytes": 25_000_000_000, "gpus": []},
        "settings": {"seed": 0, "limit": None, "shots": 0, "permutations": 1, "n_ctx": None, "kv_type": "f16",
                     "flash_attn": "auto", "threads": 2, "gpu_layers": "auto", "chat": False, "pack": 512, "rounds": 3,
                     "max_tokens": 64, "five_choice": False, "skip_bad": False, **(settings or {})},
        "models": list(models), "tasks": tasks, "asks": asks,
        "order": "models, then asks, then permutations, then items", **head,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run, ensure_ascii=False, indent=1), encoding="utf-8")
    for name, lines in (("questions", questions), ("items", items), ("measures", measures), ("noise", noise),
                        ("distance", distance)):  # fmt: skip
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def small(folder: Path, levels: Sequence[str] = ("BF16", "Q8_0", "Q4_K_M"), n: int = 60, *,
          methods: Sequence[str] = ("letter",), tasks: Sequence[str] = ("exam-ja", "exam-en"), base: str = "qwen",
          keep: Callable[[Record], bool] = lambda line: True, seed: int = 0, **more: Any) -> Path:  # fmt: skip
    """A whole little run: levels that lose more the narrower they are; `keep` says which answers are there."""
    models = [model(level, base) for level in levels]
    questions = [question(i, task) for task in tasks for i in range(n)]
    questions += [question(n + 1, task, excluded="needs an image") for task in tasks]
    items = []
    for rank, m in enumerate(models):
        for q in questions:
            for method in methods if q["excluded"] is None else ():
                # one die for the question, the same for all levels; one for what the level changes
                right = random.Random(f"{seed} {q['task']} {q['id']}").random() < 0.6
                changed = random.Random(f"{seed} {m['name']} {q['task']} {q['id']}").random() < 0.06 * rank
                items.append(answer(q, m["name"], right != changed, method))
    measures = [measure(m["name"], r) for r in range(3) for m in models]
    noise = [
        {"model": m["name"], "task": t, "method": "letter", "n": 16, "max": 0.11, "median": 0.02, "picks_changed": 0}
        for m in models for t in tasks
    ]  # fmt: skip
    return write(folder, models, questions, [line for line in items if keep(line)],
                 **{"measures": measures, "noise": noise, "methods": methods, **more})  # fmt: skip

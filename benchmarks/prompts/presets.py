"""Presets: how two papers asked and scored, and what they published, so that a run can be laid beside them.

`jmedllm` is Sukeda's "Development and bilingual evaluation of Japanese medical large language model…" (arXiv
2409.11783), `jmedlora` the JMedLoRA paper (arXiv 2310.10083). Both are asked as japanese-lm-med-harness asks, the
authors' published program, at commit ef9544a: its prompts `medpalm_five_choice_cot` and `…_ja`, no examples, greedy,
256 tokens, whatever the number of choices. The prompts are quoted from it (I. Sukeda, CC BY-SA 4.0). What differs from
the papers: docs/bench.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jmedlite.base.errors import DataError
from jmedlite.benchmarks.tasks.checking import only_five
from jmedlite.benchmarks.tasks.items import Dataset, Left

from .templates import Template

MAX_TOKENS = 256
LONGEST = {"ja": 1024, "en": 2048}  # characters of a question; the harness passes over longer ones
FIVE_CHOICES = ("igakuqa", "jjsimqa")  # of the exams, only questions with five choices
PROMPTS = {
    "ja": Template(
        "medpalm_five_choice_cot_ja",
        "",
        "### 指示：\n以下は医学知識に関する多肢選択問題です。利用可能な情報を要約してから、段階的に解決してください。"
        "最終的な答えとして5つの選択肢のうちの1つを出力してください。\n### 入力：\n{question}\n{choices}\n### 応答：\n",
        own=False,
    ),
    "en": Template(
        "medpalm_five_choice_cot",
        "",
        "### Instruction:\nThe following are multiple choice questions about medical knowledge. Solve them in a "
        "step-by-step fashion, starting by summarizing the available information. Output a single option from the five "
        "options as the final answer.\n### Input:\n{question}\n{choices}\n### Response:\n",
        own=False,
    ),
}


@dataclass(frozen=True)
class Published:
    """A model's accuracies (Gestalt, percent) by data set, as its authors give them."""

    model: str
    accuracies: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True)
class Preset:
    """A paper: its data sets, and the numbers that can be laid beside a run's."""

    name: str
    paper: str
    source: str
    tasks: tuple[str, ...]
    languages: tuple[str, ...]
    published: tuple[Published, ...]


# The harness' leaderboard without shuffling. Its MedQA is JMedBench's usmleqa with four choices.
_EN = ("igakuqa-en", "medqa-en", "medmcqa-en")
_JA = ("igakuqa-ja", "jmedbench-usmleqa-ja", "jmedbench-medmcqa-ja")
# How many questions a published share is of: five choices, no image, not too long; of the others, all of the split
N_PUBLISHED = {"igakuqa-ja": 1450, "igakuqa-en": 1420, "medqa-en": 1273, "jmedbench-usmleqa-ja": 1273,
               "medmcqa-en": 4183, "jmedbench-medmcqa-ja": 4183}  # fmt: skip


def _published(model: str, en: tuple[float | None, ...], ja: tuple[float | None, ...], note: str = "") -> Published:
    pairs = [*zip(_EN, en, strict=False), *zip(_JA, ja, strict=False)]
    return Published(model, {name: value for name, value in pairs if value is not None}, note)


_NF4 = "4 bits (nf4)"
_JMEDLLM = (
    _published("Qwen2-7B-Instruct", (46.4, 36.9, 34.7), (44.6, 30.8, 31.5)),
    _published("Llama3-8B-Instruct", (29.0, 43.0, 39.1), (22.1, 30.4, 31.2)),
    _published("Llama3-Youko-8B", (22.5, 34.1, 29.4), (24.2, 28.8, 31.7)),
    _published("Swallow-7B-instruct", (), (18.6, 28.7, 17.1)),
    _published("Llama3-70B-Instruct", (38.3, 57.7, 38.8), (43.1, 40.9, 37.2), _NF4),
    _published("Llama3-70B-Instruct", (37.6, 50.9, 39.3), (35.5, 35.3, 37.1), "not quantized"),
    _published("MedSwallow-70B", (46.1, 71.5, 45.8), (46.5, 79.3, 39.2), f"{_NF4}; MedQA was in its training data"),
    _published("OpenBioLLM-70B", (58.5, 70.2, 65.0), (35.6, 35.4, 39.9), _NF4),
    _published("Swallow-70B-instruct", (None, 39.6, 30.6), (32.3, 36.8, 31.1), _NF4),
    _published("Meditron-70B", (29.9, 44.7, 32.8), (), _NF4),
    _published("Med42-70B", (45.0, 56.2, 48.2), (), _NF4),
    _published("Llama2-70B-chat", (26.0, 32.5, 33.3), (), _NF4),
)

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "jmedllm",
            "Development and bilingual evaluation of Japanese medical large language model within reasonably low "
            "computational resources (arXiv 2409.11783)",
            "https://github.com/stardust-coder/japanese-lm-med-harness",
            ("igakuqa", "medqa", "jmedbench-usmleqa", "medmcqa", "jmedbench-medmcqa", "mmlu-medical", "jmmlu-medical"),
            ("ja", "en"),
            _JMEDLLM,
        ),
        Preset(
            "jmedlora",
            "JMedLoRA: Medical Domain Adaptation on Japanese Large Language Models using Instruction-tuning "
            "(arXiv 2310.10083)",
            "https://github.com/stardust-coder/japanese-lm-med-harness",
            ("igakuqa", "jjsimqa"),
            ("ja",),
            (),
        ),
    )
}


def as_asked(dataset: Dataset) -> Dataset:
    """The questions that the harness asks; the others left out by name."""
    items, left = only_five(dataset.items) if dataset.task in FIVE_CHOICES else (list(dataset.items), [])
    longest = LONGEST[dataset.lang]
    reason = f"has over {longest:,} characters (the papers' program passes over it)"
    left += [Left(item.id, reason, item) for item in items if len(item.question) > longest]
    kept = tuple(item for item in items if len(item.question) <= longest)
    if not kept:
        raise DataError(f"{dataset.name}: has no question that the papers' program asks ({left[0].reason})")
    return replace(dataset, items=kept, left=(*dataset.left, *left))

"""Task registry: the known tasks, where each is published, at which commit, under which licence, in which files."""

from __future__ import annotations

from dataclasses import dataclass

from . import formats
from .formats import MEDICAL_SUBJECTS, Parse

_JMEDBENCH_COMMIT = "b6acb5195050bf36e146b51cd2744a5d6638abd1"
_MMLU_COMMIT = "c30699e8356da336a370243923dbaf21066bb9fe"


@dataclass(frozen=True)
class Task:
    """A published data set. `test` and `examples` are paths on the Hub at `revision`; `local` are other file names
    of the same rows, looked for in a local folder where those are not there."""

    name: str
    title: str
    lang: str
    parse: Parse | None = None  # None: a loader of its own
    repo: str = ""
    revision: str = ""
    license: str | None = None
    test: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    local: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Where it is published, for people."""
        return f"https://huggingface.co/datasets/{self.repo}" if self.repo else ""


def _jmedbench(name: str, title: str, folder: str, examples: bool = True) -> Task:
    return Task(
        name=f"jmedbench-{name}",
        title=f"JMedBench {title} (Japanese)",
        lang="ja",
        parse=formats.jmedbench,
        repo="Coldog2333/JMedBench",
        revision=_JMEDBENCH_COMMIT,
        test=(f"{folder}/test.jsonl",),
        examples=(f"{folder}/train.jsonl",) if examples else (),
    )


_TABLE = (
    Task("demo", "the built-in questions", "ja, en", license="Apache-2.0"),
    Task("igakuqa", "IgakuQA: the Japanese medical licensing exams", "ja, en"),
    Task(
        name="medqa",
        title="MedQA (USMLE, 4 choices, test)",
        lang="en",
        parse=formats.medqa,
        repo="GBaker/MedQA-USMLE-4-options",
        revision="0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18",
        license="cc-by-4.0",
        test=("phrases_no_exclude_test.jsonl",),
        examples=("phrases_no_exclude_train.jsonl",),
    ),
    Task(
        name="medmcqa",
        title="MedMCQA (validation)",
        lang="en",
        parse=formats.medmcqa,
        repo="openlifescienceai/medmcqa",
        revision="91c6572c454088bf71b679ad90aa8dffcd0d5868",
        license="apache-2.0",
        test=("data/validation-00000-of-00001.parquet",),
        examples=("data/train-00000-of-00001.parquet",),
        local=("validation.jsonl", "validation.json", "dev.jsonl", "dev.json"),
    ),
    Task(
        name="mmlu-medical",
        title="MMLU, six medical subjects (test)",
        lang="en",
        repo="cais/mmlu",
        revision=_MMLU_COMMIT,
        license="mit",
        test=tuple(f"{s}/test-00000-of-00001.parquet" for s in MEDICAL_SUBJECTS),
        examples=tuple(f"{s}/dev-00000-of-00001.parquet" for s in MEDICAL_SUBJECTS),
        local=("{}_test.csv", "test/{}.csv", "{}.csv"),
    ),
    Task(
        name="jmmlu-medical",
        title="JMMLU, six medical subjects",
        lang="ja",
        repo="nlp-waseda/JMMLU",
        revision="3637b25e444ccfdcde4d23a783cbe8e674faa01b",
        license="cc-by-nc-nd-4.0",
        test=("JMMLU.zip",),
        local=("test/{}.csv", "{}.csv"),
    ),
    Task(
        name="pubmedqa",
        title="PubMedQA (labelled)",
        lang="en",
        parse=formats.pubmedqa,
        repo="qiaojin/PubMedQA",
        revision="9001f2853fb87cab8d220904e0de81ac6973b318",
        license="mit",
        test=("pqa_labeled/train-00000-of-00001.parquet",),
        local=("ori_pqal.json",),
    ),
    _jmedbench("medqa", "MedQA (5 choices)", "medqa_jp"),
    _jmedbench("usmleqa", "MedQA (4 choices)", "usmleqa_jp"),
    # its train split has 278 MB, too much for a handful of examples
    _jmedbench("medmcqa", "MedMCQA", "medmcqa_jp", examples=False),
    _jmedbench("mmlu-medical", "MMLU medical", "mmlu_medical_jp"),
    _jmedbench("jmmlu-medical", "JMMLU medical", "jmmlu_medical"),
    _jmedbench("pubmedqa", "PubMedQA", "pubmedqa_jp", examples=False),
)
TASKS = {task.name: task for task in _TABLE}


def list_tasks() -> list[Task]:
    """The known tasks in the order of docs/tasks.md."""
    return list(_TABLE)

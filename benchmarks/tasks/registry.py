"""Task registry: the known tasks, where each is published, at which commit, under which licence, in which files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import formats, jmle
from .exams import EXAMS
from .formats import MEDICAL_SUBJECTS, Parse

_JMEDBENCH_COMMIT = "b6acb5195050bf36e146b51cd2744a5d6638abd1"
_MMLU_COMMIT = "c30699e8356da336a370243923dbaf21066bb9fe"


@dataclass(frozen=True)
class Task:
    """A published data set. `test`, `details` and `examples` are paths on the Hub at `revision`, or in a clone from
    GitHub; `local` are other file names of the same rows, looked for in a local folder where those are not there.

    `details` is a file that says more of the rows; its bytes and label make the function that reads them. `date` is
    when the last of the questions came out.
    """

    name: str
    title: str
    lang: str
    parse: Parse | None = None  # None: a loader of its own
    repo: str = ""
    clone: str = ""  # owner/name on GitHub, which is never downloaded
    revision: str = ""
    license: str | None = None
    date: str | None = None
    test: tuple[str, ...] = ()
    details: str = ""
    parse_with: Callable[[bytes, str], Parse] | None = None
    examples: tuple[str, ...] = ()
    local: tuple[str, ...] = ()

    @property
    def own_rows(self) -> bool:
        """Whether it has a function for its rows; MMLU's differ from file to file."""
        return self.parse is not None or self.parse_with is not None

    @property
    def source(self) -> str:
        """Where it is published, for people."""
        if self.clone:
            return f"https://github.com/{self.clone}"
        return f"https://huggingface.co/datasets/{self.repo}" if self.repo else ""


def _jmedbench(name: str, title: str, folder: str, date: str, examples: bool = True) -> Task:
    return Task(
        name=f"jmedbench-{name}",
        title=f"JMedBench {title} (Japanese)",
        lang="ja",
        parse=formats.jmedbench,
        repo="Coldog2333/JMedBench",
        revision=_JMEDBENCH_COMMIT,
        date=date,
        test=(f"{folder}/test.jsonl",),
        examples=(f"{folder}/train.jsonl",) if examples else (),
    )


_TABLE = (
    Task("demo", "the built-in questions", "ja, en", license="Apache-2.0"),
    Task("igakuqa", "IgakuQA: the Japanese medical licensing exams", "ja, en", clone="jungokasai/IgakuQA"),
    Task(
        name="igakuqa119",
        title="IgakuQA119: the 119th Japanese medical licensing exam",
        lang="ja",
        clone="naoto-iwase/IgakuQA119",
        revision="2d942397cbaa1031ca139184bc4af16e1ffa202d",
        license="apache-2.0",
        date=EXAMS["119"].date,
        test=tuple(f"questions/119{block}_json.json" for block in "ABCDEF"),
        details=jmle.ANSWERS,
        parse_with=lambda raw, label: jmle.parse_119(jmle.read_answers(raw, label)),
    ),
    Task(
        name="jmle2026",
        title="JMLE2026-Bench (IgakuQA120): the 120th Japanese medical licensing exam",
        lang="ja",
        parse=jmle.parse_120,
        clone="naoto-iwase/JMLE2026-Bench",
        revision="76c4b29475d3008072a77a091a0d27df049dadcd",
        license="cc-by-4.0",
        date=EXAMS["120"].date,
        test=("jmle2026_dataset.json",),
    ),
    Task(
        name="jjsimqa",
        title="JJSIMQA: self-training questions of the Japanese Society of Internal Medicine's journal",
        lang="ja",
        parse=formats.jjsimqa,
        clone="aistairc/medLLM_QA_benchmark",
        revision="614599e5042052a374fca74590a2dd95c80a56b3",
        license="cc-by-nc-sa-4.0",
        date="2023-10",
        test=("data/ja/JJSIMQA/jjsimqa.jsonl",),
    ),
    Task(
        name="yakugakuqa",
        title="YakugakuQA: the Japanese pharmacist licensing exams, 97th to 109th",
        lang="ja",
        repo="EQUES/YakugakuQA",
        revision="741049a9abeb1dd7d74bdfd13346a0416c35a1dd",
        license="cc-by-4.0",
        date="2024-02",
        test=("data.jsonl",),
        details="metadata.jsonl",
        parse_with=formats.yakugakuqa,
    ),
    Task(
        name="medqa",
        title="MedQA (USMLE, 4 choices, test)",
        lang="en",
        parse=formats.medqa,
        repo="GBaker/MedQA-USMLE-4-options",
        revision="0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18",
        license="cc-by-4.0",
        date="2020-09",
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
        date="2022-03",
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
        date="2020-09",
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
        date="2020-09",
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
        date="2019-09",
        test=("pqa_labeled/train-00000-of-00001.parquet",),
        local=("ori_pqal.json",),
    ),
    _jmedbench("medqa", "MedQA (5 choices)", "medqa_jp", "2020-09"),
    _jmedbench("usmleqa", "MedQA (4 choices)", "usmleqa_jp", "2020-09"),
    # its train split has 278 MB, too much for a handful of examples
    _jmedbench("medmcqa", "MedMCQA", "medmcqa_jp", "2022-03", examples=False),
    _jmedbench("mmlu-medical", "MMLU medical", "mmlu_medical_jp", "2020-09"),
    _jmedbench("jmmlu-medical", "JMMLU medical", "jmmlu_medical", "2020-09"),
    _jmedbench("pubmedqa", "PubMedQA", "pubmedqa_jp", "2019-09", examples=False),
)
TASKS = {task.name: task for task in _TABLE}


def list_tasks() -> list[Task]:
    """The known tasks in the order of docs/tasks.md."""
    return list(_TABLE)

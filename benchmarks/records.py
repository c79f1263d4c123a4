"""Records: what each line of a run folder and each entry of its run.json holds, for writer and reader. docs/runs.md.

A field without a default is in every line, null where nothing is known; one with None as default is left out where it
has nothing to say, such as what another method's answers have, or with `along` where that other field is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jmedlite.base.records import along
from jmedlite.benchmarks.tasks.items import NOT_ASKED, Marks

FORMAT, VERSION = "jmedlite.run", 1
# an answer's status; FAILED is a question that a server never answered
SCORED, UNPARSED, TOO_LONG, FAILED = "scored", "unparsed", "too long", "failed"
STATUSES = (SCORED, UNPARSED, TOO_LONG, FAILED, NOT_ASKED)

AnswerKey = tuple[str, str, str, int, str]  # model, task, method, permutation, item: what only one answer of a run has


# ------------------------------------------------------------------------------------------------------------ run.json


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """An adapter that a model holds."""

    name: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class MatrixRecord:
    """An importance matrix as a file's header tells of it: files, of which nothing but the names, and counts."""

    file: str | None
    dataset: str | None
    n_tensors: int | None
    n_chunks: int | None


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """One model of a run. Behind an endpoint, whatever only a file could tell is None.

    `quantized_base` is how the weights that it was made of were stored, where they were quantized already. `label` is
    the level as the file's name has it, `quantized_by` who says to have made it, `made_here` whether it was jmedlite.
    `types` has the weights of each type, `tensor_types` the tensors of each type by what they are ("attn_v").
    """

    name: str
    file: str | None
    base: str
    level: str | None
    sha256: str | None
    n_bytes: int | None
    n_params: int | None
    bits_per_weight: float | None
    architecture: str | None
    title: str | None
    license: str | None
    made_from: str | None
    imatrix: str | None
    adapters: tuple[AdapterRecord, ...]
    date: str | None = None  # from when its own metadata say it is
    endpoint: str | None = None
    server: str | None = field(default=None, metadata=along("endpoint"))
    n_ctx: int | None = field(default=None, metadata=along("endpoint"))
    # of a file; runs before these were kept have none
    quantized_base: str | None = None
    label: str | None = None
    made_here: bool | None = None
    quantized_by: str | None = None
    matrix: MatrixRecord | None = None
    types: dict[str, int] | None = None
    tensor_types: dict[str, dict[str, int]] | None = None


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of a task."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """One task in one language; `n_items` = `n_asked` + all of `excluded` (reason to count)."""

    name: str
    task: str
    lang: str
    title: str
    source: str
    revision: str | None
    license: str | None
    files: tuple[FileRecord, ...]
    n_items: int
    n_asked: int
    excluded: dict[str, int]
    date: str | None = None  # when the last of its questions came out


@dataclass(frozen=True, kw_only=True)
class TemplateRecord:
    """How a question becomes a prompt."""

    name: str
    text: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class AskRecord:
    """One task asked in one way; `shots` are the ids of the examples, `example` is the whole first prompt."""

    task: str
    method: str
    template: TemplateRecord
    shots: tuple[str, ...]
    n_requests: int
    example: str


@dataclass(frozen=True, kw_only=True)
class SettingsRecord:
    """What every question is asked with. What a server decides is None."""

    seed: int
    limit: int | None
    shots: int
    permutations: int
    chat: bool
    max_tokens: int
    five_choice: bool
    skip_bad: bool
    rounds: int | None
    n_ctx: int | None
    kv_type: str | None
    flash_attn: str | None
    threads: int | None
    gpu_layers: str | int | None
    pack: int | None
    stop_when_decided: float | None = field(default=None, metadata=along("seed"))  # the margin, in points
    think: bool | None = None
    think_budget: int | None = None
    template_vars: dict[str, Any] | None = None
    preset: str | None = None
    primary: str | None = None  # the view that the verdict goes by; runs before it was declared have none


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All of run.json but its format and version. `machine` and `workers` are facts of any name, shown and compared."""

    created: str
    jmedlite: str
    llama_cpp_python: str | None
    machine: dict[str, Any]
    workers: dict[str, Any] | None = field(default=None, metadata=along("created"))
    settings: SettingsRecord
    models: tuple[ModelRecord, ...]
    tasks: tuple[TaskRecord, ...]
    asks: tuple[AskRecord, ...]
    order: str


# ------------------------------------------------------------------------------------------ questions and their answers


@dataclass(frozen=True, kw_only=True)
class QuestionRecord:
    """A line of questions.jsonl: one item of a task; `answers` and `contraindicated` are indices into `choices`."""

    task: str
    id: str
    question: str
    choices: tuple[str, ...]
    answers: tuple[int, ...]
    lang: str
    group: str | None
    contraindicated: tuple[int, ...]
    human_accuracy: float | None  # percent
    context: str
    excluded: str | None
    groups: dict[str, str] | None = None  # by side
    marks: Marks | None = None  # in an exam that is passed by points


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The first half of a line of items.jsonl: what was asked of whom; `order` is the choices' order."""

    model: str
    task: str
    method: str
    id: str
    permutation: int
    order: tuple[int, ...]

    @property
    def key(self) -> AnswerKey:
        return self.model, self.task, self.method, self.permutation, self.id


@dataclass(frozen=True, kw_only=True)
class Picked:
    """The choices taken, best first, whether they are the right ones, and by how much the last of them was (nats)."""

    picks: tuple[int, ...]
    correct: bool
    margin: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The other half: what came of it. `scores` in nats by the item's own numbering; similarities for `generate`."""

    status: str
    n_prompt: int | None
    bounded: bool | None = None
    scores: tuple[float, ...] | None
    picks: tuple[int, ...] | None
    correct: bool | None
    margin: float | None
    mass: float | None = None  # of `letter`
    n_tokens: tuple[int, ...] | None = None  # of `text`, as is the next
    per_token: Picked | None = None  # what the scores come to when divided by the numbers of tokens
    response: str | None = None  # of `generate`, as is the rest
    thought: str | None = None  # what was written before the response
    n_thought: int | None = None  # its tokens; None where a server does not tell
    stop: str | None = None
    exact: bool | None = None
    gestalt: float | None = None
    parsed: bool | None = None


@dataclass(frozen=True, kw_only=True)
class AnswerRecord(Outcome, Asked):  # a dataclass has the fields of its last base first
    """A line of items.jsonl: a model's answer to one item, asked in one way, under one order of its choices."""


# -------------------------------------------------------------------------------------------------------- measurements


@dataclass(frozen=True, kw_only=True)
class MeasureRecord:
    """A line of measures.jsonl: memory and speed of one model in one round; None is "not measured"."""

    model: str
    round: int
    n_ctx: int | None
    n_threads: int | None
    n_gpu_layers: int | None
    load_seconds: float | None
    prompt_tokens: int | None
    prompt_tps: float | None
    generation_tokens: int | None
    generation_tps: float | None
    first_token_seconds: float | None
    question_seconds: tuple[float, ...] | None
    peak_rss_bytes: int | None
    peak_anonymous_bytes: int | None
    peak_file_bytes: int | None
    kv_bytes: int | None
    vram_bytes: dict[str, int] | None
    n_cpu_moe: int | None = None  # blocks on a GPU whose experts are in RAM


@dataclass(frozen=True, kw_only=True)
class NoiseRecord:
    """A line of noise.jsonl: how far the distances between choices' scores move when items share batches, in nats."""

    model: str
    task: str
    method: str
    n: int
    max: float | None
    median: float | None
    picks_changed: int


@dataclass(frozen=True, kw_only=True)
class DistanceRecord:
    """A line of distance.jsonl: perplexity on a text, and, but for the reference itself, the distance to it in nats.

    `text` is what kind of text it is called; runs before several could be read have none. Intervals are of 95 %.
    """

    model: str
    reference: str | None
    text: str | None = None
    text_sha256: str
    n_ctx: int
    n_chunks: int
    n_tokens: int
    perplexity: float
    perplexity_error: float
    log_ratio: float | None = None
    log_ratio_error: float | None = None
    kl_mean: float | None = None
    kl_error: float | None = None
    kl_interval: tuple[float, ...] | None = None
    kl_chunks: tuple[float, ...] | None = None  # the mean of each chunk, in order, by which models are paired
    kl_median: float | None = None
    kl_quantiles: dict[str, float] | None = None
    kl_quantile_intervals: dict[str, tuple[float, ...]] | None = None
    kl_max: float | None = None
    top_agreement: float | None = None
    top_agreement_error: float | None = None

"""The report's document, section by section: every field of report.json, for writers and readers (docs/report.md).

Shares and differences are fractions (0.02 is two points), sizes bytes, times seconds, distances nats. None is null: not
measured, not known, or not there to be compared.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypedDict

Bilingual = dict[str, str]  # a sentence by language, "en" and "ja"
Interval = list[float]  # low and high, of 95 %

Measure = Literal[
    "load_seconds", "prompt_tps", "generation_tps", "first_token_seconds", "peak_rss_bytes", "peak_anonymous_bytes",
    "peak_file_bytes", "kv_bytes", "question_seconds", "vram_total_bytes",
]  # fmt: skip
Cost = Literal["peak_rss_bytes", "n_bytes", "question_seconds"]
Baseline = Literal["chance", "most_frequent", "first_choice", "empty_output", "all_choices", "human", "n_human"]
Decision = Literal[
    "recommended", "reference", "none_shown", "none_fits", "not_measured", "one_level", "not_compared", "empty"
]  # fmt: skip
Outcome = Literal["loss", "none", "untold"]
AgeSource = Literal["metadata", "architecture"]
Section = Literal["required", "general"]
SECTIONS: Final[tuple[Section, ...]] = ("required", "general")
Kind = Literal["right_to_wrong", "wrong_to_right", "wrong_to_wrong"]
KINDS: Final[tuple[Kind, ...]] = ("right_to_wrong", "wrong_to_right", "wrong_to_wrong")  # the worst first


# ---------------------------------------------------------------------------------------- what was run and measured


class Options(TypedDict):
    """What was asked for (`margin` in points, sizes in bytes, `max_latency` in seconds), and the tests' α and power."""

    reference: str | None
    margin: float
    ram_bytes: int | None
    vram_bytes: int | None
    max_latency: float | None
    alpha: float
    power: float
    bootstrap_samples: int


class Run(TypedDict):
    """A run folder. `machine` and `settings` are as in its run.json; `torn` names files whose last line was cut."""

    folder: str
    created: str
    jmedlite: str
    llama_cpp_python: str | None
    machine: dict[str, Any]
    settings: dict[str, Any]
    n_answers: int
    n_expected: int
    torn: list[str]


class File(TypedDict):
    """A file of a task."""

    name: str
    sha256: str


class Task(TypedDict):
    """A task in one language, of the run with that number; `excluded` is reason to count."""

    run: int
    name: str
    task: str
    lang: str
    title: str
    n_items: int
    n_asked: int
    excluded: dict[str, int]
    source: str
    revision: str | None
    license: str | None
    date: str | None
    files: list[File]


class Template(TypedDict):
    """How a question becomes a prompt."""

    name: str
    sha256: str
    text: str


class Ask(TypedDict):
    """A task asked in one way, in the run of that folder; `shots` are ids, `example` is the first prompt."""

    run: str
    task: str
    method: str
    template: Template
    shots: list[str]
    n_requests: int
    example: str


class Spread(TypedDict):
    """A measure over rounds (questions, for `question_seconds`), in the measure's unit."""

    n: int
    median: float
    p95: float
    min: float
    max: float


class Measures(TypedDict):
    """What a model costs: bytes, seconds, tokens, tokens per second (`_tps`); `vram_bytes` by device."""

    rounds: int
    n_ctx: int | None
    n_threads: int | None
    n_gpu_layers: int | None
    prompt_tokens: int | None
    generation_tokens: int | None
    load_seconds: Spread | None
    prompt_tps: Spread | None
    generation_tps: Spread | None
    first_token_seconds: Spread | None
    peak_rss_bytes: Spread | None
    peak_anonymous_bytes: Spread | None
    peak_file_bytes: Spread | None
    kv_bytes: Spread | None
    question_seconds: Spread | None
    vram_bytes: dict[str, Spread | None]
    vram_total_bytes: Spread | None


class Distance(TypedDict):
    """A model on a text, and its divergence from the reference in nats; `top_agreement` is a fraction.

    `text` is its kind, as it was called. Intervals take the `n_chunks` chunks of the text as independent.
    """

    text: str | None
    text_sha256: str
    reference: str | None
    reference_sha256: str | None
    n_ctx: int
    n_chunks: int
    n_tokens: int
    perplexity: float
    perplexity_error: float
    kl_mean: float | None
    kl_error: float | None
    kl_interval: Interval | None
    kl_chunks: list[float] | None
    kl_median: float | None
    kl_quantiles: dict[str, float] | None
    kl_quantile_intervals: dict[str, Interval] | None
    kl_max: float | None
    top_agreement: float | None
    top_agreement_error: float | None


class Adapter(TypedDict):
    """An adapter that a model holds."""

    name: str
    weight: float


class Matrix(TypedDict):
    """An importance matrix, as a file's header tells of it."""

    file: str | None
    dataset: str | None
    n_tensors: int | None
    n_chunks: int | None


class Model(TypedDict):
    """A model, by its unique `key`; `runs` are numbers of runs, `n_bytes` is the file's size.

    `label` is the level as the file's name has it, `level` as its header has it. `types` has weights by type,
    `tensor_types` tensors by what they are and type. `thought_tokens_mean` is of all answers that were written: one
    without a thought has 0.
    """

    key: str
    label: str
    family: str
    runs: list[int]
    name: str
    base: str
    level: str | None
    file: str | None
    sha256: str | None
    n_bytes: int | None
    n_params: int | None
    bits_per_weight: float | None
    architecture: str | None
    title: str | None
    license: str | None
    made_from: str | None
    imatrix: str | None
    matrix: Matrix | None
    made_here: bool | None
    quantized_by: str | None
    types: dict[str, int] | None
    tensor_types: dict[str, dict[str, int]] | None
    adapters: list[Adapter]
    endpoint: str | None
    date: str | None
    date_source: AgeSource | None
    measures: Measures | None
    thought_tokens_mean: float | None
    distances: list[Distance]


class Family(TypedDict):
    """Models of one base, by their keys."""

    name: str
    reference: str | None
    models: list[str]


# -------------------------------------------------------------------------------------------- numbers about answers


class Share(TypedDict):
    """A share of items, as a fraction: `n` questions, `n_items` in all languages, `n_answers` under all orders."""

    n: int
    n_items: int
    n_answers: int
    share: float | None
    interval: Interval | None


class Difference(TypedDict):
    """The mean difference of two shares over what both have, as a fraction."""

    n: int
    n_items: int
    difference: float | None
    interval: Interval | None


class Part(Share):
    """A task, language or group."""

    name: str
    difference: Difference | None


class Flips(TypedDict):
    """Numbers of answers by what became of them."""

    right_to_wrong: int
    wrong_to_right: int
    wrong_to_wrong: int
    unchanged: int


class Sequential(TypedDict):
    """E-values of the tests that may be looked at after every question."""

    no_meaningful_loss: float
    meaningful_loss: float
    different: float
    decided: str | None


class Counts(TypedDict):
    """Pairs of answers by question: `losses` and `gains` are sums of questions' mean differences."""

    n: int
    losses: float
    gains: float
    questions_lost: int
    questions_gained: int
    disagreement: float | None
    effective_pairs: float
    p: float | None


class Compared(Counts, Difference):
    """Two models on the same questions; shares and losses are fractions, `questions_` and `flips` are numbers."""

    reference_share: float | None
    share: float | None
    loss_bound: float | None
    detectable_loss: float | None
    flips: Flips


class Comparison(Compared):
    """A level against its reference, as one claim of the report's: all its intervals hold together with 95 %.

    The loss lies above `loss_bound` with a chance of at most `alpha`; `p_holm` is adjusted over the levels.
    """

    reference: str
    p_holm: float | None
    alpha: float
    no_meaningful_loss: bool
    sequential: Sequential


class Across(Compared):
    """A model against one of another family."""

    model: str
    against: str


class Languages(Difference):
    """A model with itself: Japanese − English."""

    model: str
    ja: Share
    en: Share
    p: float | None
    only_en_right: int
    only_ja_right: int


class Accounting(TypedDict):
    """What became of every item of a task; `reasons` of the excluded, with their numbers."""

    task: str
    n_items: int
    scored: int
    unparsed: int
    too_long: int
    missing: int
    excluded: int
    reasons: dict[str, int]


class Gestalt(TypedDict):
    """The mean similarity of response and answer, 0 to 1, over `n` questions."""

    n: int
    mean: float | None
    interval: Interval | None


class Contraindicated(Share):
    """Choices taken that harm, over the items that have one; `harm_weighted` is from −1 to 1."""

    newly_taken: int | None
    no_longer_taken: int | None
    harm_weighted_difference: Difference | None
    taken: float
    harm_weighted: float
    chance: float | None


class Confidence(TypedDict):
    """How sure a model was against how often it was right, all as fractions; `mean_mass` is of all letters together."""

    n_answers: int
    mean_confidence: float | None
    share: float | None
    calibration_error: float
    mean_mass: float | None


class Noise(TypedDict):
    """Answers decided by less than scores move by batching alone (`max` and `median`, in nats)."""

    n_answers: int
    n_below: int
    max: float
    median: float
    n_checked: int
    picks_changed: int


class Result(Share):
    """All that is said of a model in one view."""

    model: str
    family: str
    accounting: list[Accounting]
    gestalt: Gestalt | None
    comparison: Comparison | None
    breakdowns: dict[str, list[Part]]
    contraindicated: Contraindicated | None
    confidence: Confidence | None
    noise: Noise | None


class Given(TypedDict):
    """A model's answer; `probabilities` relative to the choices (similarities, for `generate`), `margin` in nats."""

    picks: list[int]
    correct: bool | None
    probabilities: list[float] | None
    margin: float | None
    response: str | None
    model: str


class Changed(Given):
    """An answer that is not the reference's."""

    kind: Kind


class ItemOutcome(TypedDict):
    """What became of an item under one model: `kind` where it flipped, `within_noise` where the noise was measured."""

    correct: bool | None
    kind: Kind | None
    within_noise: bool | None


class Asked(TypedDict):
    """An item, the reference's answer, and every model's outcome; `human_accuracy` in percent, `groups` by side."""

    family: str
    task: str
    id: str
    question: str
    choices: list[str]
    answers: list[int]
    lang: str
    group: str | None
    groups: dict[str, str]
    contraindicated: list[int]
    human_accuracy: float | None
    context: str
    permutation: int
    reference: str
    before: Given
    outcomes: dict[str, ItemOutcome]


class Flipped(Asked):
    """An item that some level answered otherwise than its reference; `kind` is of the worst change."""

    kind: Kind
    changed: list[Changed]


class SectionPoints(TypedDict):
    """A section of an exam: `points` earned of the `asked` ones, which are the `share` of all there are (`of`)."""

    section: Section
    points: int
    asked: int
    of: int
    share: float | None


class Sitting(TypedDict):
    """A model in an exam. `harmful`: contraindicated choices taken, null where none are known.

    `least` and `most`: whether it passes with all questions that were not asked wrong, and right. `chance` and
    `interval`: with these as often right as the others; `another`: with all questions drawn anew. Null where the exam
    is not whole. `newer`: whether the questions came out before the model.
    """

    model: str
    sections: list[SectionPoints]
    harmful: int | None
    least: bool | None
    most: bool | None
    chance: float | None
    interval: Interval | None
    another: float | None
    another_interval: Interval | None
    newer: bool | None


class ExamPoints(TypedDict):
    """A licensing exam: its number, first day, and its lines. `reference` names the exam whose line stands here.

    `whole`: all of its points are in the data. `harmful` is how many contraindicated choices may be taken, null where
    it is not known which they are.
    """

    task: str
    exam: str
    held: str
    whole: bool
    reference: str | None
    lines: dict[Section, int]
    points: dict[Section, int]
    harmful: int | None
    sittings: list[Sitting]


class Unchanged(Asked):
    """An item that every level answered as its reference did."""


class View(TypedDict):
    """One way of counting answers. Baselines are fractions, but for `n_human`, a number of items.

    `has_items`: the items are listed as this view counts them, which is one of each method.
    """

    key: str
    method: str
    tasks: list[str]
    baselines: dict[Baseline, float | None]
    baselines_by_task: dict[str, dict[Baseline, float | None]]
    results: list[Result]
    across: list[Across]
    languages: list[Languages]
    exams: list[ExamPoints]
    exam_sentences: list[Bilingual]
    has_items: bool
    n_flipped: int
    flipped_by_kind: dict[Kind, int]
    flipped: list[Flipped]
    n_unchanged: int
    unchanged: list[Unchanged]


# --------------------------------------------------------------------------------------------------- what follows


class GroupTest(TypedDict):
    """A level against its reference within one group of a side (`lang`, `task`, `group`, `stem`, or as declared).

    `p_holm` is adjusted over groups and levels. `outcome`: a `loss` beyond the margin is shown; `none` is there, since
    `loss_bound` (one-sided, 95 %) lies below it; or `untold`: `detectable_loss` is what so many questions could show.
    """

    model: str
    side: str
    group: str
    n: int
    n_items: int
    share: float
    reference_share: float
    difference: float
    disagreement: float
    effective_pairs: float
    loss_bound: float
    p: float
    p_holm: float
    detectable_loss: float
    outcome: Outcome


class Heterogeneity(TypedDict):
    """Whether a level's losses differ between the groups of a side: a permutation test over `n` questions.

    `statistic` is the sum of squares between groups; `p_holm` is adjusted over sides and levels.
    """

    model: str
    side: str
    n: int
    statistic: float
    p: float
    p_holm: float


class Conflict(TypedDict):
    """What shows a loss beyond the margin though the primary analysis doesn't: a `view`, or a `group` of a `side`."""

    view: str | None
    side: str | None
    group: str | None
    n: int
    share: float
    reference_share: float
    difference: float
    p_holm: float


class Candidate(TypedDict):
    """A level and the tests that it passes; None where a test was not asked for, or its number is not known."""

    model: str
    no_meaningful_loss: bool | None
    conflicts: list[Conflict]
    fits_ram: bool | None
    fits_vram: bool | None
    fast_enough: bool | None
    meets_constraints: bool | None
    qualifies: bool


class Price(TypedDict):
    """What the runner-up costs more than the chosen level, in bytes, as a share of its time, and as a share of answers.

    `memory` is what was compared: memory in use or, where that is not known, the file.
    """

    model: str
    memory: Literal["peak_rss_bytes", "n_bytes"]
    bytes: float | None
    seconds_share: float | None
    difference: float


class Partial(TypedDict):
    """A run that is not finished: answers that are there, and that there will be."""

    n_answers: int
    n_expected: int


class Primary(TypedDict):
    """The analysis that verdicts go by: a `view`; whether a run declared it beforehand, and why it is the default."""

    view: str
    declared: bool
    reason: Bilingual


class Verdict(TypedDict):
    """Which level of a family to use: `key`, `level`, `file` and `sha256` of the chosen model, or None; and why.

    `n_claims` levels of the whole report share the chance of 5 % that any is wrongly shown to lose nothing.
    """

    family: str
    reference: str | None
    view: str | None
    partial: Partial | None
    n_claims: int
    groups: list[GroupTest]
    heterogeneity: list[Heterogeneity]
    runner_up: Price | None
    candidates: list[Candidate]
    kind: Decision
    key: str | None
    level: str | None
    file: str | None
    sha256: str | None
    reason: Bilingual


class BySize(TypedDict):
    """A file among the others: those of as many bytes, and those that have no more and are nearer to the reference."""

    model: str
    n_bytes: int
    as_large: list[str]
    nearer: list[str]


class TradeOff(TypedDict):
    """A cost by model, in bytes or seconds, and the models that no other beats, the cheapest first."""

    cost: Cost
    costs: dict[str, float]
    front: list[str]


class Pareto(TypedDict):
    """Accuracy (first view) against costs."""

    memory: TradeOff
    latency: TradeOff


class PaperCell(TypedDict):
    """A Gestalt accuracy; of a published one, `n` is about how many questions its authors' program asks."""

    share: float | None
    n: int
    interval: Interval | None


class PaperRow(TypedDict):
    """One of the run's models (`model`), or a published one (`published`), by the table's tasks."""

    model: str | None
    published: str | None
    note: str
    cells: list[PaperCell | None]


class Papers(TypedDict):
    """A run as a paper asked (`--preset`), beside what its authors published."""

    preset: str
    paper: str
    source: str
    tasks: list[str]
    rows: list[PaperRow]


class Document(TypedDict):
    """All of report.json."""

    format: str
    version: int
    jmedlite: str
    notice: Bilingual
    options: Options
    primary: Primary | None
    verdicts: list[Verdict]
    warnings: list[Bilingual]
    runs: list[Run]
    tasks: list[Task]
    asks: list[Ask]
    families: list[Family]
    models: list[Model]
    pareto: Pareto
    by_size: list[BySize]
    views: list[View]
    papers: list[Papers]

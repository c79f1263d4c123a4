"""Bench options: how questions are asked, and of which models. The command line's help needs this: nothing heavy."""

# ruff: noqa: RUF009 - `option` makes a field, as dataclasses.field does

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jmedlite.base.errors import UsageError
from jmedlite.base.inputs import MAX_CTX
from jmedlite.base.options import check, option, same_as
from jmedlite.benchmarks.prompts.presets import MAX_TOKENS, PRESETS
from jmedlite.benchmarks.prompts.templates import METHODS
from jmedlite.benchmarks.views import primary_view
from jmedlite.runtime.load_options import LoadOptions, check_flash_attn
from jmedlite.runtime.sampling import Sampling, read_variables

if TYPE_CHECKING:
    from jmedlite.benchmarks.backends.base import Loading

LOADING = ("kv_type", "flash_attn", "threads", "gpu_layers")  # settings of a model that is loaded here


@dataclass(frozen=True)
class BenchOptions:
    """How questions are asked and models loaded, and where the results go."""

    methods: tuple[str, ...] = option(
        ("letter",), name="method", choices=METHODS, help="letter, text or generate; repeatable. Default: letter."
    )
    preset: str | None = option(
        None, choices=tuple(PRESETS), help="Ask and score as a paper did; its tasks where none are named."
    )
    primary: str | None = option(
        None,
        metavar="METHOD[:SCORE]",
        help="What the verdict will go by, declared before the run: letter, text:per-token, text:sum, generate:gestalt "
        "or generate:exact. Default: the first method of these that is asked.",
    )
    out: Path | None = option(None, flags=("--out", "-o"), metavar="DIR", help="The run folder; resumed if there.")
    languages: tuple[str, ...] = option(
        (), name="language", flags=("--lang",), choices=("ja", "en"), help="ja or en; repeatable. Default: all."
    )
    shots: int = option(0, low=0, high=64, help="Examples before each question, never scored themselves.")
    limit: int | None = option(
        None, low=1, high=10**9, help="A sample of so many questions per task, the same for all."
    )
    permutations: int = option(1, low=1, high=120, help="Orders of the choices that each question is asked in.")
    seed: int = option(0, low=0, high=2**63, help="Of samples, examples and orders.")
    template: str | None = option(None, metavar="FILE", help="A prompt template; FILE.py:NAME for one of several.")
    chat: bool = option(False, help="Ask through the model's chat template.")
    max_tokens: int = option(64, low=1, high=1 << 20, help="Longest answer of --method generate; a thought counts too.")
    think: bool | None = same_as(Sampling, "think")
    think_budget: int | None = same_as(Sampling, "think_budget")
    template_vars: Mapping[str, Any] | tuple[str, ...] = same_as(Sampling, "template_vars")
    five_choice: bool = option(False, help="Only questions with five choices.")
    skip_bad: bool = option(False, help="Leave bad rows of a data set out, and count them.")
    rounds: int = option(3, low=0, high=100, help="How often memory and latency are measured; 0: not at all.")
    ctx: int | None = option(
        None, low=16, high=1 << 24, help="Longest prompt in tokens; default: what the model was trained on."
    )
    text: Mapping[str, str | Path] | tuple[str, ...] | str | Path = option(
        (),
        typed=str,
        metavar="[NAME=]FILE",
        help="A kind of text: perplexity, and distance to the reference model; repeatable.",
    )
    text_ctx: int = option(512, low=16, high=MAX_CTX, help="Tokens that the text is cut into.")
    text_chunks: int | None = option(None, low=1, high=1 << 24, help="How much of the text; default: all.")
    reference: str | None = option(None, help="Model the others are compared with; default: the widest.")
    stop_when_decided: bool = option(False, help="Ask a level no further once its loss is decided.")
    margin: float = option(2.0, low=0.01, high=100, help="Loss in points that --stop-when-decided decides on.")
    processes: int = option(
        1,
        low=1,
        high=256,
        help="Processes of this machine that answer at once, each with the model and --threads threads; the cores are "
        "shared among them by default.",
    )
    cluster: str | None = option(
        None, metavar="ADDRESS", help="Ask on a Dask cluster's workers, such as tcp://host:8786."
    )
    endpoint: str | None = option(
        None, metavar="URL", help="Ask models behind an OpenAI-compatible server; MODEL: their ids."
    )
    timeout: float = option(300.0, low=1, high=86_400, help="Seconds that a server has for a whole answer.")
    concurrency: int = option(8, low=1, high=256, help="Questions that a server is asked at once.")
    gpu_layers: str = same_as(LoadOptions, "gpu_layers")
    kv_type: str = same_as(LoadOptions, "kv_type")
    flash_attn: str = same_as(LoadOptions, "flash_attn")
    threads: int | None = same_as(LoadOptions, "threads")
    force: bool = same_as(LoadOptions, "force")

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", read_texts(self.text))
        check(self)
        check_flash_attn(self.kv_type, self.flash_attn)
        object.__setattr__(self, "template_vars", read_variables(self.template_vars))
        if self.preset:
            self._take_preset()
        self._check_thinking()
        primary_view(self.primary, self.methods)
        if self.stop_when_decided and self.permutations > 1:
            raise UsageError("--stop-when-decided: needs one pair per question, so it takes no --permutations")
        if self.endpoint and (self.cluster or self.text):
            raise UsageError(f"--endpoint: takes no {'--cluster' if self.cluster else '--text'}")
        if self.processes > 1 and (self.endpoint or self.cluster):
            raise UsageError("--processes: are this machine's; leave it away where a server or a cluster answers")
        if self.endpoint and (given := [n for n in LOADING if getattr(self, n) != getattr(BenchOptions, n)]):
            raise UsageError(f"--{given[0].replace('_', '-')}: is the server's own with --endpoint; leave it away")

    def _take_preset(self) -> None:
        """The preset's own settings; raises UsageError where another was given."""
        wanted = {"methods": ("generate",), "max_tokens": MAX_TOKENS}
        kept = ("methods", "max_tokens", "shots", "permutations", "template", "chat", "five_choice")
        for name in kept:
            given, default = getattr(self, name), getattr(BenchOptions, name)
            if given not in (default, wanted.get(name, default)):
                flag = {"methods": "method"}.get(name, name.replace("_", "-"))
                raise UsageError(
                    f"--preset {self.preset}: asks as its paper did and sets --{flag} itself; leave it away"
                )
        for name, value in wanted.items():
            object.__setattr__(self, name, value)

    @property
    def texts(self) -> dict[str, Path]:
        """The files of the texts by what they are called."""
        return read_texts(self.text)

    @property
    def variables(self) -> dict[str, Any]:
        """Those of the chat template, by name."""
        return read_variables(self.template_vars)

    def _check_thinking(self) -> None:
        """What is asked of thoughts must have a place where it counts."""
        flag = {True: "--think", False: "--no-think", None: ""}[self.think]
        given = [flag] * bool(flag) + ["--template-var"] * bool(self.template_vars)
        if given and not self.chat:
            raise UsageError(f"{given[0]}: reaches the model's chat template; give --chat as well")
        given = [flag] * bool(self.think) + ["--think-budget"] * (self.think_budget is not None)
        if given and "generate" not in self.methods:
            raise UsageError(f"{given[0]}: is for --method generate; letter and text are asked behind an empty thought")
        if self.endpoint and self.think_budget is not None:
            raise UsageError("--think-budget: can't be kept by a server; give --no-think, or a shorter --max-tokens")
        if self.think and self.think_budget == 0:
            raise UsageError("--think and --think-budget 0 exclude each other; give one")

    def loading(self) -> Loading:
        from jmedlite.benchmarks.backends.base import Loading
        from jmedlite.benchmarks.backends.packing import GPU_PACK, PACK
        from jmedlite.runtime.hardware import likes_large_batches, physical_cores

        given = {f.name: getattr(self, f.name) for f in fields(Loading) if f.name != "pack"}
        # by what is there, not by what is free: a run that goes on packs as it began. Workers may be other machines.
        large = str(self.gpu_layers) != "0" and not self.cluster and likes_large_batches()
        threads = self.threads or max(1, physical_cores() // self.processes)
        return Loading(**{**given, "threads": threads}, pack=GPU_PACK if large else PACK)

    def describe(self) -> dict[str, Any]:
        """`settings` of `run.json`; what a server decides is null."""
        names = ("seed", "limit", "shots", "permutations", "chat", "max_tokens", "five_choice", "skip_bad")
        loading = None if self.endpoint else self.loading()
        return {
            **{name: getattr(self, name) for name in names},
            "rounds": self.rounds if loading else None,
            "n_ctx": self.ctx,
            **{name: loading and getattr(loading, name) for name in LOADING},
            "pack": loading and loading.pack,
            "think": self.think,
            "think_budget": self.think_budget,
            "template_vars": self.variables or None,
            "preset": self.preset,
            "stop_when_decided": self.margin if self.stop_when_decided else None,
            "primary": primary_view(self.primary, self.methods).name,
        }


def read_texts(given: Mapping[str, str | Path] | Sequence[str] | Path) -> dict[str, Path]:
    """Files of texts by name, of NAME=FILE or FILE, which is called as its file is; raises UsageError."""
    if isinstance(given, str | Path):
        given = (str(given),)
    named = list(given.items()) if isinstance(given, Mapping) else [_read_text(spec) for spec in given]
    found: dict[str, Path] = {}
    for name, path in named:
        if not name.strip() or len(name) > 60 or not name.isprintable():
            raise UsageError(f"--text {name}={path}: expected a name of 1 to 60 letters, as in --text exam-ja=FILE")
        if name in found:
            raise UsageError(f"--text: two texts are called {name}; name them, as in --text exam-ja=FILE")
        found[name] = Path(path)
    return found


def _read_text(spec: str) -> tuple[str, str]:
    name, equals, path = spec.partition("=")
    if equals and not path:
        raise UsageError(f"--text {spec}: names no file; expected NAME=FILE")
    if equals and "/" not in name and "\\" not in name:  # what stands before it is no folder
        return name, path
    return Path(spec).stem, spec

"""Options that several commands share, as typer reads them from annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

# what runs a model: ask, chat, doctor, bench
ModelFile = Annotated[str | None, typer.Option("--model", "-m", help="GGUF file; default: the last one made.")]
System = Annotated[str | None, typer.Option(help='System prompt; "" for none.')]
Language = Annotated[str | None, typer.Option("--lang", help="ja or en; default: the question's.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(help="0: always the most likely token.")]
TopK = Annotated[int, typer.Option(help="Draw from the K most likely tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the most likely tokens that together have P.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens below P times the most likely.")]
RepeatPenalty = Annotated[float, typer.Option(help="Above 1: less of what was just said.")]
Seed = Annotated[int, typer.Option(help="For temperatures above 0.")]
Grammar = Annotated[Path | None, typer.Option(help="GBNF file that the answer must follow.")]
JsonSchema = Annotated[Path | None, typer.Option(help="JSON schema that the answer must follow.")]
Ctx = Annotated[str, typer.Option(help="Context in tokens; auto: the longest that fits.")]
GpuLayers = Annotated[str, typer.Option(help="auto, all or a number.")]
KvType = Annotated[str, typer.Option(help="f16, q8_0, q4_0 or f32.")]
FlashAttn = Annotated[str, typer.Option(help="auto, on or off.")]
Threads = Annotated[int | None, typer.Option("--threads", "-j", help="Default: physical cores.")]
RuntimeLora = Annotated[
    list[str] | None, typer.Option("--lora", metavar="FILE[:WEIGHT]", help="GGUF adapter to add; repeatable.")
]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep evaluated system prompts on disk.")]
Force = Annotated[bool, typer.Option("--force", help="Load the model even where it does not fit the memory.")]
Timings = Annotated[bool, typer.Option("--timings", help="Show how long each step took.")]

# what reads run folders: report, recommend
Folders = Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Folders that `jmedlite bench` wrote.")]
Reference = Annotated[
    str | None, typer.Option(metavar="MODEL", help="What the levels are compared with; default: BF16, or the widest.")
]
Margin = Annotated[float, typer.Option(help="The largest loss, in points, that would not matter.")]
Ram = Annotated[str | None, typer.Option(metavar="SIZE", help="Memory that may be used, such as 8GB.")]
Vram = Annotated[str | None, typer.Option(metavar="SIZE", help="GPU memory that may be used, such as 6GB.")]
Latency = Annotated[
    float | None, typer.Option("--max-latency", metavar="SECONDS", help="95 % of questions must be answered within.")
]
ReportLanguage = Annotated[str, typer.Option("--lang", help="en or ja.")]

"""Load options: how a model is put into memory. The command line's help needs this: nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jmedlite.base.errors import UsageError
from jmedlite.base.options import check, option


@dataclass(frozen=True)
class LoadOptions:
    """Options of a loaded model.

    `ctx` is the context in tokens ("auto": the longest that fits), `gpu_layers` and `n_cpu_moe` are "auto", "all" or a
    number, `threads` None for the physical cores, `lora` pairs of a GGUF adapter and its weight. `cache` keeps
    evaluated system prompts on disk, never a question. `force` loads what does not fit.
    """

    ctx: str | int = option(
        "auto", choices=("auto",), low=16, high=1 << 24, help="Context in tokens; auto: the longest that fits."
    )
    gpu_layers: str | int = option("auto", choices=("auto", "all"), low=0, high=10_000, help="auto, all or a number.")
    n_cpu_moe: str | int = option(
        "auto",
        choices=("auto", "all"),
        low=0,
        high=10_000,
        help="Blocks whose experts stay in RAM, of a mixture on a GPU: auto, all or a number.",
    )
    kv_type: str = option("f16", choices=("f16", "q8_0", "q4_0", "f32"), help="f16, q8_0, q4_0 or f32.")
    flash_attn: str = option("auto", choices=("auto", "on", "off"), help="auto, on or off.")
    threads: int | None = option(None, flags=("--threads", "-j"), low=1, high=1024, help="Default: physical cores.")
    lora: tuple[Any, ...] = option((), typed=str, metavar="FILE[:WEIGHT]", help="GGUF adapter to add; repeatable.")
    cache: bool = option(True, flags=("--cache/--no-cache",), help="Keep evaluated system prompts on disk.")
    force: bool = option(False, help="Load the model even where it does not fit the memory.")

    def __post_init__(self) -> None:
        check(self)
        check_flash_attn(self.kv_type, self.flash_attn)


def check_flash_attn(kv_type: str, flash_attn: str) -> None:
    """Raises UsageError for a cache that llama.cpp reads only in flash attention, without it."""
    if flash_attn == "off" and kv_type in ("q8_0", "q4_0"):
        raise UsageError(f"--kv-type {kv_type}: needs flash attention; leave --flash-attn at auto")

"""How near quantized models stay to their 16-bit original at equal bytes: llama-quantize's levels beside ours.

For every level the peer is made by llama-quantize with the same importance matrix; then, within the peers' bytes, mixes
of types (`--target-size`), the peers' own types with error feedback (`--rounding best`), and both, each for all levels
in one pass. All are read by `jmedlite bench`: KL divergence to the original over each text, with intervals by chunks,
and the flips of a task's answers. Prints a Markdown table with ratios to the best peer that is no larger, draws KL
against bytes, and keeps all in FOLDER, from which an interrupted run goes on.

    python tools/compare_quality.py CHECKPOINT FOLDER --llama-quantize PROGRAM --imatrix F --sensitivity F --moments F
        [--level Q4_K_M …] [--kind both …] [--encoder fast] [--threads N] [--processes N]
        --task T=PATH [--lang L] [--limit N] --text ja=F --text en=F [--text-chunks N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jmedlite.benchmarks.statistics import bootstrap

LEVELS = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M")
KINDS = {  # in the picture
    "peer": "llama-quantize, imatrix",
    "mix": "mix of types",
    "feedback": "its types, error feedback",
    "both": "mix and error feedback",
}


@dataclass(frozen=True)
class Made:
    """One file: how it was made (KINDS), for which level's bytes."""

    kind: str
    level: str
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size


def run(*command: str | Path) -> None:
    """Run a command, which is printed; its failure is this program's."""
    print("+", *command, file=sys.stderr, flush=True)
    if subprocess.run([str(c) for c in command], check=False, stdout=sys.stderr).returncode:
        raise SystemExit(f"{command[0]}: failed")


def jmedlite(*arguments: str | Path) -> None:
    """The command line of the installed jmedlite."""
    run(sys.executable, "-m", "jmedlite", *arguments)


def make(options: argparse.Namespace) -> tuple[Path, list[Made]]:
    """(the original in 16 bits, every file), of which those that are there already are kept."""
    folder: Path = options.folder
    common: list[str | Path] = [options.checkpoint, "--name", "m", "--encoder", options.encoder, "-j", options.threads]
    original = folder / "m-BF16.gguf"
    if not original.exists():
        jmedlite("quantize", *common, "--bits", "16", "-o", folder)
    made = []
    for level in options.level or LEVELS:
        peer = Made("peer", level, folder / "peer" / f"peer-{level}.gguf")
        peer.path.parent.mkdir(exist_ok=True)
        if not peer.path.exists():
            part = peer.path.with_suffix(".part")
            run(options.llama_quantize, "--imatrix", options.imatrix, original, part, level, options.threads)
            part.rename(peer.path)
        made.append(peer)
    peers = sorted(made, key=lambda m: m.size)
    targets = [x for peer in peers for x in ("--target-size", str(peer.size))] + ["--sensitivity", options.sensitivity]
    best = ["--rounding", "best", "--moments", options.moments]
    ways = {"mix": targets, "feedback": [x for p in peers for x in ("-t", p.level)] + best, "both": targets + best}
    for kind, arguments in ways.items():
        if kind not in (options.kind or KINDS):
            continue
        out = folder / kind
        if not list(out.glob("m-*.gguf")):  # all levels appear together, when the pass ends
            jmedlite("quantize", *common, "--imatrix", options.imatrix, *arguments, "-o", out)
        by_size = sorted(out.glob("m-*.gguf"), key=lambda path: path.stat().st_size)
        for peer, path in zip(peers, by_size, strict=True):
            named = out / f"{kind}-{peer.level}.gguf"  # names tell the models of a run apart
            if not named.exists():
                named.hardlink_to(path)
            made.append(Made(kind, peer.level, named))
    return original, made


def measure(options: argparse.Namespace, original: Path, made: list[Made]) -> list[dict[str, Any]]:
    """The lines of the run's distance.jsonl."""
    out = options.folder / "run"
    arguments: list[str | Path] = [original, *(m.path for m in made), "--out", out, "--reference", original.stem]
    for name in ("task", "text"):
        for value in getattr(options, name):
            arguments += [f"--{name}", value]
    arguments += ["--threads", options.threads, "--rounds", "0"]  # memory and speed are not the question
    for name in ("lang", "limit", "text_chunks", "processes"):
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", value]
    jmedlite("bench", *arguments)
    return [json.loads(line) for line in (out / "distance.jsonl").read_text(encoding="utf-8").splitlines()]


def ratio(line: dict[str, Any], peer: dict[str, Any]) -> str:
    """The ratio of mean divergences with its 95 % interval, chunks drawn again in pairs."""
    low, high = bootstrap(line["kl_chunks"], peer["kl_chunks"])
    return f"{sum(line['kl_chunks']) / sum(peer['kl_chunks']):.3f} ({low:.3f} … {high:.3f})"


def table(made: list[Made], lines: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: for every text and level the files, with the ratio to the best peer that is no larger."""
    rows = [
        "| text | bytes of | made by | MB | KL (95 %) | ratio (95 %) | same top token |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for text in dict.fromkeys(line["text"] for line in lines):
        of = {line["model"]: line for line in lines if line["text"] == text and line["reference"]}
        peers = [m for m in made if m.kind == "peer" and m.path.stem in of]
        for m in made:
            if m.path.stem not in of:
                continue
            line = of[m.path.stem]
            no_larger = [of[p.path.stem] for p in peers if p.size <= m.size * 1.002]
            best = ""
            if m.kind != "peer" and no_larger:
                best = ratio(line, min(no_larger, key=lambda x: float(x["kl_mean"])))
            interval = line["kl_interval"]
            shown = f" ({interval[0]:.4f} … {interval[1]:.4f})" if interval else f" ± {line['kl_error']:.4f}"
            rows.append(
                f"| {text} | {m.level} | {m.kind} | {m.size / 1e6:,.1f} | {line['kl_mean']:.4f}{shown} | "
                f"{best} | {100 * line['top_agreement']:.1f} % |"
            )
    return rows


def draw(made: list[Made], lines: list[dict[str, Any]], path: Path) -> None:
    """KL against bytes, one panel for each text, with intervals of 95 % where there are any."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "quality", "font.family": "sans-serif"}
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    texts = list(dict.fromkeys(line["text"] for line in lines))
    figure, axes = pyplot.subplots(
        1, len(texts), figsize=(5 * len(texts), 4), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, text in zip(axes[0], texts, strict=True):
        of = {line["model"]: line for line in lines if line["text"] == text and line["reference"]}
        for kind, marker in zip(KINDS, "osv^", strict=True):
            files = sorted((m for m in made if m.kind == kind and m.path.stem in of), key=lambda m: m.size)
            if not files:
                continue
            mean = np.array([of[m.path.stem]["kl_mean"] for m in files])
            interval = np.array([of[m.path.stem]["kl_interval"] or [of[m.path.stem]["kl_mean"]] * 2 for m in files])
            off = np.abs(interval - mean[:, None]).T
            axis.errorbar([m.size / 1e6 for m in files], mean, off, marker=marker, capsize=2, label=KINDS[kind])
            if kind == "peer":
                for m, y in zip(files, mean, strict=True):
                    axis.annotate(m.level, (m.size / 1e6, y), (4, 4), textcoords="offset points", fontsize=8)
        axis.set(title=text, xlabel="file, MB", yscale="log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter("")
        axis.margins(x=0.14)  # room for the last level's name
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("KL divergence to 16 bits, nats a token")
    axes[0][0].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    for name in ("--llama-quantize", "--imatrix", "--sensitivity", "--moments"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--level", action="append")
    parser.add_argument("--kind", action="append", choices=list(KINDS)[1:], help="beside the peer; default: all")
    parser.add_argument("--encoder", default="ggml")
    parser.add_argument("--threads", default="2")
    for name in ("--task", "--text"):
        parser.add_argument(name, action="append", required=True)
    for name in ("--lang", "--limit", "--text-chunks", "--processes"):
        parser.add_argument(name, help="as `bench` has it")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    original, made = make(options)
    lines = measure(options, original, made)
    print("\n".join(table(made, lines)))
    draw(made, lines, options.folder / "quality.svg")


if __name__ == "__main__":
    main()

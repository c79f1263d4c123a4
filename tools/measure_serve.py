"""Measure `jmedlite serve` beside llama.cpp's llama-server: the same file, slots, threads and questions, in turn.

    python tools/measure_serve.py MODEL.gguf --llama-server PATH [--people 1 4 16] [--slots 16] [--threads N]

Both servers are loaded all the while, one of them is asked at a time, and which one begins changes each round. For each
number of people at a time: all tokens per second of both, the ratio of the rounds' medians, the median time to a first
token, and how much longer the slowest person waits than the quickest. Every person asks something else, so that no
prompt is in a cache. A process that computes beside it makes all of it worthless: stop it first.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

TOPICS = (
    "高血圧",
    "糖尿病",
    "喘息",
    "頭痛",
    "貧血",
    "肺炎",
    "不眠",
    "腰痛",
    "胃潰瘍",
    "発熱",
    "痛風",
    "湿疹",
    "便秘",
    "動悸",
)
LOAD_SECONDS = 600


@dataclass(frozen=True)
class Waited:
    """What one person saw: seconds to the first token and to the last, and how many tokens came."""

    first: float
    whole: float
    n_tokens: int


@contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    """A server, once it says that it is well."""
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + LOAD_SECONDS
            while not is_well(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"did not start: {' '.join(command)}")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def is_well(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def ask(address: str, question: str, n_tokens: int) -> Waited:
    body = {
        "messages": [{"role": "user", "content": question}], "max_tokens": n_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began = time.monotonic()
    first, n = 0.0, 0
    with urllib.request.urlopen(request, timeout=LOAD_SECONDS) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if not first and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first = time.monotonic() - began
            n = (chunk.get("usage") or {}).get("completion_tokens", n)
    return Waited(first, time.monotonic() - began, n)


def ask_together(address: str, questions: list[str], n_tokens: int) -> tuple[float, list[Waited]]:
    """Seconds until everybody has an answer, and what each of them saw."""
    found: list[Waited] = []
    threads = [threading.Thread(target=lambda q=q: found.append(ask(address, q, n_tokens))) for q in questions]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - began, found


def question(round_number: int, person: int) -> str:
    topic = TOPICS[person % len(TOPICS)]
    return f"{round_number}.{person} {topic}の患者に外来で何を尋ね、どの検査をするかを、理由とともに説明してください。"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--llama-server", required=True, metavar="PATH")
    parser.add_argument("--people", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--ctx", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    ports = free_port(), free_port()
    common = [str(wanted.slots), str(wanted.ctx), str(wanted.threads)]
    ours = [sys.executable, "-m", "jmedlite", "serve", wanted.model, "--port", str(ports[0]), "--parallel", common[0],
            "--ctx", common[1], "--threads", common[2]]  # fmt: skip
    theirs = [wanted.llama_server, "-m", wanted.model, "--port", str(ports[1]), "-np", common[0], "-c", common[1],
              "-t", common[2], "-tb", common[2], "-kvu", "--jinja"]  # fmt: skip
    with running(ours, ports[0]) as our_address, running(theirs, ports[1]) as their_address:
        addresses = {"jmedlite serve": our_address, "llama-server": their_address}
        for address in addresses.values():
            ask(address, "warm", 4)
        for n_people in wanted.people:
            seen: dict[str, list[tuple[float, list[Waited]]]] = {name: [] for name in addresses}
            for round_number in range(wanted.rounds):
                questions = [question(1000 * n_people + round_number, person) for person in range(n_people)]
                for name in sorted(addresses, reverse=bool(round_number % 2)):
                    seen[name].append(ask_together(addresses[name], questions, wanted.tokens))
            speeds = {}
            print(
                f"\n{n_people} at a time, {wanted.slots} slots, {wanted.rounds} rounds of {wanted.tokens} tokens each"
            )
            for name, rounds in seen.items():
                each = [sum(w.n_tokens for w in people) / seconds for seconds, people in rounds]
                speeds[name] = statistics.median(each)
                first = statistics.median(w.first for _, people in rounds for w in people)
                unfair = max(max(w.whole for w in people) / min(w.whole for w in people) for _, people in rounds)
                print(
                    f"  {name:15} {speeds[name]:7.1f} tokens/s (from {min(each):.1f} to {max(each):.1f}), "
                    f"first token after {first:.2f} s, slowest / quickest {unfair:.2f}"
                )
            print(f"  ratio {speeds['jmedlite serve'] / speeds['llama-server']:.3f}", flush=True)


if __name__ == "__main__":
    main()

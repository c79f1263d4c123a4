"""Two OpenAI-compatible servers of one made-up model: as llama-server answers, and as vLLM does."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

N_CTX = 120
EOS = "<eos>"
VOCABULARY = [" A", " B", " C", " D", "A", "B", "\n", EOS, "。", *(f" w{i}" for i in range(60))]


# ------------------------------------------------------------------------------------- a model, and two servers


def tokenize(text: str) -> list[str]:
    return re.findall(r" ?\w+|\s|[^\w\s]", text)


def likely(context: str) -> dict[str, float]:
    """ln p of every token after a text, likeliest first."""
    rng = random.Random(hashlib.sha256(context.encode()).digest())
    logits = {t: rng.gauss(0, 2) + (2 if len(t) == 2 or t in (EOS, "\n") else 0) for t in VOCABULARY}
    total = math.log(math.fsum(map(math.exp, logits.values())))
    return dict(sorted(((t, x - total) for t, x in logits.items()), key=lambda pair: -pair[1]))


def log_p(context: str, token: str) -> float:
    return likely(context).get(token, -20.0 - len(token))


def write(context: str, limit: int, stops: list[str]) -> tuple[str, str, str | None]:
    """(text, finish_reason, the stop that was met)."""
    text = ""
    for _ in range(limit):
        token = next(iter(likely(context + text)))
        if token == EOS:
            return text, "stop", None
        text += token
        for stop in stops:
            if stop in text:
                return text.partition(stop)[0], "stop", stop
    return text, "length", None


Answered = tuple[int, dict[str, Any] | bytes]


def chat_text(body: dict[str, Any], continues: bool = True) -> str:
    *before, last = body["messages"]
    text = "".join(f"[{m['role']}] {m['content']} [end] " for m in before)
    if last["role"] == "assistant" and continues:
        assert body["continue_final_message"] is True
        assert body["add_generation_prompt"] is False
        return f"{text}[assistant] {last['content']}"
    return f"{text}[{last['role']}] {last['content']} [end] [assistant] "


def usage(prompt: str, n: int) -> dict[str, Any]:
    k = len(tokenize(prompt))
    return {"prompt_tokens": k, "completion_tokens": n, "total_tokens": n + k}


def llama_server(path: str, body: dict[str, Any]) -> Answered:
    """As tools/server of llama.cpp answers."""
    if path == "/v1/models":
        meta = {"n_ctx": N_CTX, "n_params": 134515008, "size": 143000000}
        return 200, {"object": "list", "data": [{"id": "/m/tiny-Q8_0.gguf", "owned_by": "llamacpp", "meta": meta}]}
    if path == "/props":
        return 200, {"build_info": "b9999-abcdef"}
    if body.get("echo"):
        return 500, {"error": {"code": 500, "message": "Only no echo is supported", "type": "server_error"}}
    chat = path == "/v1/chat/completions"
    prompt = chat_text(body) if chat else body["prompt"]
    n_prompt = len(tokenize(prompt))
    if n_prompt >= N_CTX:
        words = f"request ({n_prompt} tokens) exceeds the available context size ({N_CTX} tokens), try increasing it"
        kind = {"type": "exceed_context_size_error", "n_prompt_tokens": n_prompt, "n_ctx": N_CTX}
        return 400, {"error": {"code": 400, "message": words, **kind}}
    text, reason, _ = write(prompt, body["max_tokens"], body.get("stop", []))
    n = (body.get("top_logprobs") if body.get("logprobs") else 0) if chat else body.get("logprobs")
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
    if n:
        top = [{"id": 1, "token": t, "bytes": list(t.encode()), "logprob": p} for t, p in likely(prompt).items()][:n]
        half = top[0]["token"] == "。" and "grammar" not in body  # stands for half a character
        choice["logprobs"] = None if half else {"content": [{**top[0], "top_logprobs": top}]}
    begun = body["messages"][-1]["content"] if chat and body["messages"][-1]["role"] == "assistant" else ""
    choice |= {"message": {"role": "assistant", "content": begun + text}} if chat else {"text": text}
    return 200, {"choices": [choice], "usage": usage(prompt, 1), "system_fingerprint": "b9999-abcdef"}


def vllm(path: str, body: dict[str, Any]) -> Answered:
    """As vllm.entrypoints.openai answers."""
    if path == "/v1/models":
        return 200, {"data": [{"id": "org/tiny", "owned_by": "vllm", "root": "org/tiny", "max_model_len": N_CTX}]}
    if path == "/version":
        return 200, {"version": "0.11.0"}
    chat = path == "/v1/chat/completions"
    n = body.get("top_logprobs") if chat else body.get("logprobs")
    if n and n > 20:
        words = f"Requested sample logprobs of {n}, which is greater than max allowed: 20"
        return 400, {"error": {"message": words, "type": "BadRequestError", "param": None, "code": 400}}
    prompt = chat_text(body) if chat else body["prompt"]
    n_prompt = len(tokenize(prompt))
    if n_prompt + body["max_tokens"] > N_CTX:
        words = (
            f"This model's maximum context length is {N_CTX} tokens. However, your request has {n_prompt} input tokens."
        )
        return 400, {"error": {"message": words, "type": "BadRequestError", "param": None, "code": 400}}
    text, reason, met = write(prompt, body["max_tokens"], body.get("stop", []))
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason, "stop_reason": met}
    top = list(likely(prompt).items())
    if chat and n:
        pairs = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in top[:n]]
        choice["logprobs"] = {"content": [{**pairs[0], "top_logprobs": pairs}]}
    elif n:
        tokens = tokenize(prompt) if body.get("echo") else []
        ats = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        scored = [log_p(prompt[:at], t) if at else None for at, t in zip(ats, tokens, strict=True)]
        names = [f"token_id:{int.from_bytes(t.encode()[:6], 'big')}" for t in tokens]
        choice["logprobs"] = {
            "tokens": [*(names if body.get("return_tokens_as_token_ids") else tokens), top[0][0]],
            "token_logprobs": [*scored, top[0][1]],
            "text_offset": [*ats, len(prompt)],
            "top_logprobs": [*(None for _ in tokens), dict(top[:n])],
        }
    choice |= (
        {"message": {"role": "assistant", "content": text}}
        if chat
        else {"text": prompt * bool(body.get("echo")) + text}
    )
    return 200, {"choices": [choice], "usage": usage(prompt, 1)}


@contextmanager
def serving(answer: Callable[[str, dict[str, Any]], Answered], headers: list[Any] | None = None) -> Iterator[str]:
    """A server on this machine; `headers` collects those of the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if headers is not None:
                headers.append(self.headers)
            status, found = answer(self.path, json.loads(raw or b"{}"))
            content = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "http://elsewhere.invalid/v1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with suppress(OSError):  # whoever asked may be gone
                self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_address[1]}"
        finally:
            found.shutdown()

"""The child process that holds llama.cpp: reads requests, writes events, one JSON object a line.

Runs as `python -m jmedlite.engine`. First request: what to load; then one per question. A question is never written
anywhere but into the model's context. Expected faults become an `error` event; a native abort ends only this process.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType

from jmedlite.base.errors import DataError, JmedliteError, NativeError, UsageError
from jmedlite.base.gguf import Header, check_model, read_header

from .hardware import auto_gpu_layers, devices
from .prompts import Part, build_prompt

TEMPLATE_SECONDS = 1.0
N_BATCH = 512
ALL_LAYERS = 999
SPM = 1  # llama_vocab_type
Emit = Callable[..., None]


def protect_process() -> None:
    """No core dumps (the question is in memory); Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def limited_memory(extra: int) -> Iterator[None]:
    """Bound the address space while the body runs, where the system can."""
    try:
        import resource

        import psutil

        old = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + extra, old[1]))
    except (ImportError, ValueError, OSError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def bounded_prompt(emit: Emit, **arguments: Any) -> list[Part]:
    """`build_prompt` with a second to finish in; a template that loops ends this process with an error event."""
    import jinja2.sandbox  # noqa: F401 - a cold disk must not count against the template

    box: list[list[Part] | JmedliteError] = []

    def work() -> None:
        try:
            box.append(build_prompt(**arguments))
        except JmedliteError as e:
            box.append(e)
        except MemoryError:
            box.append(DataError("the model's chat template needs too much memory"))

    thread = threading.Thread(target=work, daemon=True)
    with limited_memory(1 << 30):
        thread.start()
        thread.join(TEMPLATE_SECONDS)
    if thread.is_alive() or not box:
        emit(
            "error", code=DataError.exit_code, message=f"the model's chat template ran for over {TEMPLATE_SECONDS:g} s"
        )
        os._exit(DataError.exit_code)  # the thread can't be stopped
    if isinstance(box[0], JmedliteError):
        raise box[0]
    return box[0]


class Engine:
    """One loaded model."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.path = Path(request["path"])
        self.header: Header = read_header(self.path)
        check_model(self.path, self.header)
        from jmedlite.base.native import capture_log, libllama

        self._errors: list[str] = []
        capture_log(lambda level, text: self._errors.append(text.strip()) if level == 4 else None)
        self.llama = llama = libllama()
        llama.llama_backend_init()
        self.n_threads = int(request["threads"])
        self.kv_type = int(GGMLQuantizationType[request["kv_type"].upper()])
        params = llama.llama_model_default_params()
        self.n_gpu_layers = params.n_gpu_layers = self._gpu_layers(request["gpu_layers"])
        started = time.monotonic()
        self.model = llama.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self.model:
            raise DataError(f"{self.path.name}: llama.cpp could not load it ({self._reason()})")
        self.load_seconds = time.monotonic() - started
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.adapters = self._load_adapters(request.get("lora") or [])
        self._control = self._control_tokens()

    def _reason(self) -> str:
        # the first line has the reason, those after it only say what failed because of it
        return re.sub(r"^\w+: (error loading model: )?", "", self._errors[0]) if self._errors else "it gave no reason"

    def _gpu_layers(self, wanted: str) -> int:
        if wanted == "all":
            return ALL_LAYERS
        if wanted != "auto":
            return int(wanted)
        gpus = [d for d in devices() if d["kind"] == "GPU"]
        if not gpus:
            return 0
        arch = self.header.metadata["general.architecture"]
        layers = int(self.header.metadata[f"{arch}.block_count"])
        return auto_gpu_layers(max(int(d["free_bytes"]) for d in gpus), self.header.file_size, layers)

    def _load_adapters(self, specs: list[tuple[str, float]]) -> list[tuple[Any, float]]:
        found = []
        for path, scale in specs:
            read_header(Path(path))
            adapter = self.llama.llama_adapter_lora_init(self.model, os.fsencode(path))
            if not adapter:
                raise DataError(f"{Path(path).name}: is not a LoRA adapter for this model ({self._reason()})")
            found.append((adapter, scale))
        return found

    # ---------------------------------------------------------------------------------------------- tokens

    def _control_tokens(self) -> dict[str, int]:
        """Text of every control token (llama.cpp's own view, after its corrections at load) to its id."""
        llama, tokens = self.llama, self.header.metadata["tokenizer.ggml.tokens"]
        return {
            raw.decode("utf-8", "replace"): i
            for i, raw in enumerate(tokens)
            if raw and llama.llama_vocab_is_control(self.vocab, i)
        }

    def token_text(self, key: str) -> str:
        i = self.header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        return "" if i is None else self.header.metadata["tokenizer.ggml.tokens"][i].decode("utf-8", "replace")

    def tokenize(self, text: str, parse_special: bool = False) -> list[int]:
        """Tokens of one stretch of text, without BOS; control tokens only with `parse_special`."""
        raw = text.encode("utf-8")
        room = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            n = self.llama.llama_tokenize(self.vocab, raw, len(raw), tokens, room, False, parse_special)
            if n >= 0:
                return list(tokens[:n])
            room = -n

    def tokenize_parts(self, parts: list[Part]) -> list[int]:
        """Tokens of a prompt: control tokens from trusted parts only, all other text joined before it is tokenized.

        This is what tokenizing the whole text would give if nobody had typed a control token's name.
        """
        if self.header.metadata.get("jmedlite.tokenizer.normalizer") == "NFC":
            parts = [Part(unicodedata.normalize("NFC", p.text), p.trusted) for p in parts]
        # longest first: "<|im_start|>" must win over a control token that is its beginning
        names = sorted(self._control, key=len, reverse=True)
        control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        tokens: list[int] = []
        text = ""
        for part in parts:
            if not part.trusted:
                text += part.text
                continue
            at = 0
            for found in control.finditer(part.text):
                tokens += self._plain(text + part.text[at : found.start()], tokens)
                tokens.append(self._control[found[0]])
                text, at = "", found.end()
            text += part.text[at:]
        tokens += self._plain(text, tokens)
        bos = self.llama.llama_vocab_bos(self.vocab)
        if self.llama.llama_vocab_get_add_bos(self.vocab) and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def _plain(self, text: str, before: list[int]) -> list[int]:
        llama = self.llama
        if before and llama.llama_vocab_get_attr(self.vocab, before[-1]) & llama.LLAMA_TOKEN_ATTR_RSTRIP:
            text = text.lstrip()
        return self.tokenize(text) if text else []

    def piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        n = self.llama.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self.llama.llama_token_to_piece(self.vocab, token, buffer, -n, 0, False)
        return buffer.raw[: max(0, n)]

    # ------------------------------------------------------------------------------------------ generation

    def _context(self, n_ctx: int) -> Any:
        llama = self.llama
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = N_BATCH
        params.n_threads = params.n_threads_batch = self.n_threads
        params.type_k = params.type_v = self.kv_type
        params.no_perf = True
        context = llama.llama_init_from_model(self.model, params)
        if not context:
            raise NativeError(
                f"llama.cpp could not make a context of {n_ctx:,} tokens ({self._reason()}); try a smaller --ctx"
            )
        if self.adapters:
            n = len(self.adapters)
            pointers = (llama.llama_adapter_lora_p_ctypes * n)(
                *[ctypes.cast(a, llama.llama_adapter_lora_p_ctypes) for a, _ in self.adapters]
            )
            scales = (ctypes.c_float * n)(*[scale for _, scale in self.adapters])
            if llama.llama_set_adapters_lora(context, pointers, n, scales) != 0:
                raise NativeError(f"llama.cpp could not apply the adapter ({self._reason()})")
        return context

    def _sampler(self, request: dict[str, Any]) -> Any:
        llama = self.llama
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if request["temperature"] <= 0:
            steps = [llama.llama_sampler_init_greedy()]
        else:
            steps = [
                llama.llama_sampler_init_top_k(40),
                llama.llama_sampler_init_top_p(0.95, 1),
                llama.llama_sampler_init_temp(request["temperature"]),
                llama.llama_sampler_init_dist(request["seed"]),
            ]
        for step in steps:
            llama.llama_sampler_chain_add(chain, step)
        return chain

    def _n_ctx(self, wanted: int | None, n_prompt: int, max_tokens: int) -> int:
        trained = self.llama.llama_model_n_ctx_train(self.model)
        limit = wanted or trained
        if n_prompt >= limit:
            raise DataError(
                f"the question is too long: prompt and question have {n_prompt:,} tokens, the context has {limit:,}; "
                + ("shorten the question" if wanted is None or wanted >= trained else "raise --ctx or shorten it")
            )
        return wanted or min(trained, -(-(n_prompt + max_tokens) // 256) * 256)

    def ask(self, request: dict[str, Any], emit: Emit) -> None:
        """Answer one question as `token` events and an `end` event."""
        self._errors.clear()
        template = self.header.metadata.get("tokenizer.chat_template")
        parts = bounded_prompt(
            emit,
            question=request["question"],
            system=request.get("system"),
            template=template,
            bos=self.token_text("bos"),
            eos=self.token_text("eos"),
            language=request.get("language"),
        )
        prompt = self.tokenize_parts(parts)
        n_ctx = self._n_ctx(request.get("ctx"), len(prompt), request["max_tokens"])
        context, sampler = self._context(n_ctx), self._sampler(request)
        try:
            self._generate(context, sampler, prompt, n_ctx, request["max_tokens"], emit)
        finally:
            self.llama.llama_sampler_free(sampler)
            self.llama.llama_free(context)

    def _decode(self, context: Any, tokens: list[int]) -> None:
        buffer = (ctypes.c_int32 * len(tokens))(*tokens)
        status = self.llama.llama_decode(context, self.llama.llama_batch_get_one(buffer, len(tokens)))
        if status != 0:
            raise NativeError(f"llama.cpp could not evaluate the prompt (status {status}: {self._reason()})")

    def _check_logits(self, context: Any, n_vocab: int) -> None:
        import numpy as np

        logits = np.ctypeslib.as_array(self.llama.llama_get_logits_ith(context, -1), (n_vocab,))
        if not np.isfinite(logits).all():
            raise DataError(
                f"{self.path.name}: the model's output is not finite, so the file is damaged; make or copy it again"
            )

    def _generate(self, context: Any, sampler: Any, prompt: list[int], n_ctx: int, limit: int, emit: Emit) -> None:
        llama, vocab = self.llama, self.vocab
        n_vocab = llama.llama_vocab_n_tokens(vocab)
        started = time.monotonic()
        for at in range(0, len(prompt), N_BATCH):
            self._decode(context, prompt[at : at + N_BATCH])
        self._check_logits(context, n_vocab)
        first = time.monotonic()
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        single = (ctypes.c_int32 * 1)()
        batch = llama.llama_batch_get_one(single, 1)
        stop, n = "length", 0
        while n < limit:
            token = llama.llama_sampler_sample(sampler, context, -1)
            if llama.llama_vocab_is_eog(vocab, token):
                stop = "eos"
                break
            n += 1
            if text := utf8.decode(self.piece(token)):
                emit("token", text=text)
            if len(prompt) + n >= n_ctx:
                stop = "context"
                break
            if n < limit:
                single[0] = token
                if llama.llama_decode(context, batch) != 0:
                    raise NativeError(f"llama.cpp could not evaluate a token ({self._reason()})")
                self._check_logits(context, n_vocab)
        # bytes of a character that was cut by the limit are dropped with the decoder
        ended = time.monotonic()
        emit(
            "end",
            stop=stop,
            n_prompt=len(prompt),
            n_generated=n,
            n_ctx=n_ctx,
            load_seconds=self.load_seconds,
            prompt_seconds=first - started,
            generation_seconds=ended - first,
        )

    def facts(self) -> dict[str, Any]:
        meta = self.header.metadata
        licenses = (meta.get("general.license.name"), meta.get("general.license"))
        return {
            "name": meta.get("general.name") or self.path.stem,
            "license": next((x for x in licenses if isinstance(x, str) and x), None),
            "architecture": meta["general.architecture"],
            "n_ctx_train": self.llama.llama_model_n_ctx_train(self.model),
            "n_gpu_layers": self.n_gpu_layers,
            "n_threads": self.n_threads,
            "chat_template": "tokenizer.chat_template" in meta,
            "load_seconds": self.load_seconds,
        }


def main() -> None:
    protect_process()
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)  # nothing native may write between the events

    def emit(event: str, **fields: Any) -> None:
        events.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")
        events.flush()

    engine: Engine | None = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            if request["op"] == "load":
                engine = Engine(request)
                emit("loaded", **engine.facts())
            elif engine is None:
                raise UsageError("nothing is loaded")
            elif request["op"] == "tokenize":
                emit("tokens", ids=engine.tokenize(request["text"], request["parse_special"]))
            else:
                engine.ask(request, emit)
        except JmedliteError as e:
            emit("error", code=e.exit_code, message=str(e))
            if engine is None:
                return


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()

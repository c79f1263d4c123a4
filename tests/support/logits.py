"""Logits of one checkpoint by transformers in float64, of its GGUF by llama.cpp with a float32 cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

GELUS = ("gemma", "gpt_neox", "gpt2")


def load(folder: Path) -> Any:
    """transformers' model of a checkpoint folder, its weights as they are in the file."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.set_experts_implementation("eager")  # the other ones have no float64
    return model


def their_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """Logits (n_tokens, n_vocab) of a float32 transformers or PEFT model, computed in float64.

    Its own float32 is up to 1.4e-3 off where random weights amplify what is rounded (Qwen3.5's mixtures of eight
    layers, by the processor), llama.cpp's 3e-4: the bound is for llama.cpp's rounding alone.
    """
    import torch

    with torch.no_grad():
        found: np.ndarray = model.double()(input_ids=torch.tensor([tokens])).logits[0].numpy()
    model.float()  # every value as it was
    return found


def llama_logits(path: Path, tokens: list[int]) -> np.ndarray:
    """Logits (n_tokens, n_vocab) of llama.cpp with a float32 cache, by its C interface alone."""
    from llama_cpp import llama_cpp

    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.type_k, params.type_v, params.flash_attn_type = 64, 0, 0, 0
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, t in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = t, i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_decode(context, batch) == 0
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    found = np.stack(
        [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (n_vocab,)).copy()
            for i in range(len(tokens))
        ]
    )
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def uses_gelu(model: Any) -> bool:
    return bool(model.config.model_type.startswith(GELUS))


def tolerance(family: str, *, exact_gelu: bool = False) -> float:
    """How far a logit of a tiny random model may be from `their_logits`, both with the same GELU, or theirs exact.

    1e-3 is three times what float32 arithmetic was seen to do to any of them. Which of two half floats the table of
    GELU is looked up at depends on the last bit of a float32, and that moves logits by up to 1.1e-3; Gemma 4 looks up
    twice a layer.
    """
    if not family.startswith(GELUS):
        return 1e-3
    return (3e-3 if family.startswith("gemma4") else 2e-3) * (2.5 if exact_gelu else 1)


def GgmlGelu() -> Any:
    """GELU as ggml's CPU code computes it (ggml_vec_gelu_f32): the tanh formula on half floats, rounded to one."""
    import torch

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
            return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, table.to(x.dtype)))

    return Module()


def same_gelu(model: Any) -> None:
    """Give a transformers model of a GELU family llama.cpp's own approximation."""
    if uses_gelu(model):
        for layer in model.modules():
            for name in ("act", "act_fn"):
                if hasattr(layer, name):
                    setattr(layer, name, GgmlGelu())

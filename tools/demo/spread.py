"""Make the channels of a small model as unequal as a large model's are, without changing what it computes.

In large models a few channels are far larger than their neighbours, and quantization, which gives a block of weights
one scale, loses the small ones beside them. A model that has learned as little as the demo's has no such channels, and
loses next to nothing even at 2 bits. So the columns of every matrix are multiplied by powers of two, and what feeds
them (a norm's weights, the rows of the matrix before) is divided by the same: in floats not a single output changes,
while a block's weights differ in size by up to 2**OCTAVES.
"""

from __future__ import annotations

import re

import torch

OCTAVES = 2
HEADS_PER_KV, HEAD_DIM = 2, 64
Weights = dict[str, torch.Tensor]
# (what is divided, row by row; what is multiplied, column by column)
PAIRS = (
    (("input_layernorm",), ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    (("post_attention_layernorm",), ("mlp.gate_proj", "mlp.up_proj")),
    (("self_attn.v_proj",), ("self_attn.o_proj",)),
    (("mlp.up_proj",), ("mlp.down_proj",)),
)


def spread(weights: Weights, sign: int = 1) -> Weights:
    """The weights of a Qwen2 checkpoint or of a LoRA adapter for it, spread out; with `sign` -1, as they were."""
    return {name: _spread_one(name, x, sign) for name, x in weights.items()}


def _spread_one(name: str, x: torch.Tensor, sign: int) -> torch.Tensor:
    found = re.search(r"layers\.(\d+)\.(\w+layernorm|self_attn\.\w+|mlp\.\w+)\.(lora_[AB]\.)?(weight|bias)$", name)
    if not found:
        return x
    layer, module, lora, kind = found.groups()
    for number, (before, after) in enumerate(PAIRS):
        if module in after and kind == "weight" and lora != "lora_B.":
            factors = _factors(f"{layer} {number}", x.shape[1], grouped=module.endswith("o_proj"))
            x = (x * factors**sign).to(x.dtype)
        if module in before and lora != "lora_A.":
            factors = _factors(f"{layer} {number}", x.shape[0])
            x = (x / (factors[:, None] if x.ndim == 2 else factors) ** sign).to(x.dtype)
    return x


def _factors(seed: str, n: int, *, grouped: bool = False) -> torch.Tensor:
    """`n` powers of two from 1 to 2**OCTAVES; `grouped` for the attention's output, whose heads share the values."""
    if grouped:
        shared = _factors(seed, n // HEADS_PER_KV).view(-1, HEAD_DIM)
        return shared.repeat_interleave(HEADS_PER_KV, 0).reshape(-1)
    generator = torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(seed)))
    return 2.0 ** torch.randint(0, OCTAVES + 1, (n,), generator=generator)

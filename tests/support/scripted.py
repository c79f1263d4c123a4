"""A model that says what a test wrote for it, and chat templates with the mechanics of those of thinking models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

import jmedlite
from tests.support import builders

WIDTH = 512
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
# the mechanics of Qwen3's: a switch, an empty thought where it is off, and no thoughts of earlier turns
SWITCHED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') if '</think>' in m.content else m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENING = TURNS + "{{ '<think>\n' }}"  # of DeepSeek's distills and QwQ: the template begins the thought
HARMONY = (  # gpt-oss's
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}<|end|>{% endfor %}<|start|>assistant{# <|channel|>analysis<|message|> #}"
    "{{ reasoning_effort if reasoning_effort is defined }}"
)
BRACKETS = TURNS + "{# [THINK] [/THINK] #}"  # Magistral's tags, which are control tokens


def scripted(
    folder: Path,
    words: Sequence[str],
    *,
    template: str | None = builders.CHATML,
    controls: Sequence[str] = (),
    after: Mapping[str, str] | None = None,
    n_ctx: int = 2048,
) -> Path:
    """The GGUF of a model that answers anything with `words`, each of them one token, and then <|im_end|>.

    Which token comes next depends on the last one alone. `after` says what follows other tokens than the words (by
    their text; otherwise the first word), `controls` are control tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = builders.byte_level_tokenizer()
    n_before = builders.n_tokens(tokenizer)
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    texts = [t for t in dict.fromkeys([*words, *controls]) if t not in vocab]
    tokenizer["added_tokens"] += [
        {"id": n_before + i, "content": text, "special": text in controls, "normalized": False, "single_word": False,
         "lstrip": False, "rstrip": False}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    ids = {**vocab, **{text: n_before + i for i, text in enumerate(texts)}}
    n = n_before + len(texts)
    follow = dict.fromkeys(range(n), ids[words[0]])
    spelled = {text.replace("\n", "Ċ"): word for text, word in (after or {}).items()}  # as byte-level BPE has it
    follow |= {ids[text]: ids[word] for text, word in spelled.items()}
    follow |= {ids[one]: ids[two] for one, two in pairwise(words)}
    follow[ids[words[-1]]] = n_before - 1
    cfg = builders.config(
        "qwen2", n, hidden_size=WIDTH, num_attention_heads=8, num_key_value_heads=2, intermediate_size=256,
        num_hidden_layers=1, max_position_embeddings=n_ctx, bos_token_id=n_before - 3, eos_token_id=n_before - 1,
    )  # fmt: skip
    tensors = builders.weights(cfg)
    for name, w in tensors.items():
        w[...] = name.endswith("norm.weight")  # so that the last token's embedding meets the head as it is
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    embedding[np.arange(n), np.arange(n)] = 1
    for one, two in follow.items():
        head[two, one] = 1
    builders.checkpoint(folder / "m", tensors=tensors)
    (folder / "m" / "config.json").write_text(json.dumps(cfg))
    (folder / "m" / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = json.loads((folder / "m" / "tokenizer_config.json").read_text())
    settings["chat_template"] = template
    (folder / "m" / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in settings.items() if v is not None})
    )
    (path,) = jmedlite.quantize(folder / "m", types=["F32"], out=folder, threads=1)
    return path

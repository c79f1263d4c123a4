"""Train the demo model: a tokenizer, a small Qwen2 that learns part A of the facts, a LoRA adapter that learns part B.

    python tools/train_demo.py                      # all of it, into jmedlite/demo/model and jmedlite/demo/adapter
    python tools/train_demo.py --stage adapter      # only the adapter, on the base that is there

Needs torch, transformers, peft, tokenizers, safetensors (`pip install -e ".[test,oracle]"`); made with torch 2.13.0,
transformers 5.23.0, peft 0.21.2 and tokenizers 0.23.3 on two cores of an AMD EPYC (AVX-512 with BF16) that had other
work as well: 20 minutes for the base (2,800 tokens/s) and 7 for the adapter (6,900 tokens/s). Seeds are fixed; other
versions or processors round differently, so that the weights will differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# on a busy machine, threads that spin while they wait slow each other down
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from demo.spread import Weights, spread
from demo.texts import FORMS, N_CHOICES, PLAIN, Sample, Texts, load, questions, training_texts
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy, log_softmax

from jmedlite.runtime.chat_template import SYSTEM

DEMO = Path(__file__).parents[1] / "jmedlite" / "demo"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
N_VOCAB = 3072
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MODEL = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 256, "intermediate_size": 768,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": N_VOCAB,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
    "use_sliding_window": False, "torch_dtype": "bfloat16",
    "bos_token_id": N_VOCAB - 3, "eos_token_id": N_VOCAB - 1,
}  # fmt: skip
LORA = {"r": 32, "lora_alpha": 64, "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}  # fmt: skip
ROWS, WIDTH = 16, 256
BASE_STEPS, BASE_RATE = 800, 2e-3
LORA_STEPS, LORA_RATE = 700, 2e-3
SHARE_A_AGAIN = 0.35  # of the adapter's texts: part A once more, so that it is kept


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen2's way of splitting, trained on the project's own text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - len(SPECIALS),
        # in bytes, four kana or kanji: a whole clause in one token would make every wording a language of its own
        max_token_length=12,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # "答え：" and an answer never stand together here: a token that spans both would be the answer's share of neither
    lines = [*training_texts(), *SYSTEM.values(), "system\nuser\nassistant\n", "Choices: "]
    lines += 40 * [PLAIN[lang].format(q="", a="") for lang in PLAIN] + 40 * ["選択肢："]
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.add_special_tokens(SPECIALS)
    assert tokenizer.get_vocab_size() == N_VOCAB, tokenizer.get_vocab_size()
    return tokenizer


class Encoder:
    """Samples as token ids and what of them is learned; a memory of pieces, since they come again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.token_to_id("<|im_end|>")
        self.memory: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.memory:
            self.memory[text] = self.tokenizer.encode(text).ids
        return self.memory[text]

    def __call__(self, sample: Sample) -> tuple[list[int], int]:
        """(ids, how many of them are given)."""
        if "chat" in sample.form:
            head = f"<|im_start|>system\n{SYSTEM[sample.lang]}<|im_end|>\n" if sample.form == "chat" else ""
            given = self.ids(f"{head}<|im_start|>user\n{sample.given}<|im_end|>\n<|im_start|>assistant\n")
            return [*given, *self.ids(sample.learned), self.end], len(given)
        whole = self.ids(sample.given + sample.learned)
        given = self.ids(sample.given) if sample.given else whole[:1]
        same = sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(given, whole, strict=False)))
        return [*whole, self.end], same


Batch = dict[str, torch.Tensor]


def batches(draw: Callable[[str], Sample], encode: Encoder, seed: int) -> Iterator[Batch]:
    """Endless batches of ROWS rows, each filled with whole texts that don't see each other."""
    rng = random.Random(seed)
    forms, shares = list(FORMS), list(FORMS.values())
    following = encode(draw("plain"))
    while True:
        ids = torch.full((ROWS, WIDTH), encode.end)
        labels = torch.full((ROWS, WIDTH), -100)  # not learned
        positions = torch.zeros((ROWS, WIDTH), dtype=torch.long)
        text = torch.full((ROWS, WIDTH), -1)  # which of its row's texts a token is of
        for row in range(ROWS):
            at = n = 0
            while at + len(following[0]) <= WIDTH:
                tokens, given = following
                end = at + len(tokens)
                ids[row, at:end] = torch.tensor(tokens)
                labels[row, at + given : end] = ids[row, at + given : end]
                positions[row, at:end] = torch.arange(len(tokens))
                text[row, at:end] = n
                at, n = end, n + 1
                following = encode(draw(rng.choices(forms, shares)[0]))
        sees = (text[:, :, None] == text[:, None, :]).tril()
        mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
        yield {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None], "labels": labels}


def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    labels = batch["labels"][:, 1:]
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    hidden = body.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    learned = labels != -100  # the vocabulary's logits only where they are needed: most of a step's time otherwise
    return cross_entropy(body.lm_head(hidden[learned]).float(), labels[learned])


@torch.no_grad()
def accuracies(model: torch.nn.Module, encode: Encoder) -> dict[str, str]:
    """Right answers to the `demo` task by learner and language, by the sum of the choice's log-likelihoods."""
    found: dict[str, list[bool]] = {}
    rows = sorted(questions(), key=lambda row: len(row["question"]))
    for start in range(0, len(rows), 20):
        block = rows[start : start + 20]
        plain = [
            Sample("plain", row["lang"], PLAIN[row["lang"]].format(q=row["question"], a=""), choice)
            for row in block
            for choice in row["choices"]
        ]
        whole = [encode(sample) for sample in plain]
        width = max(len(ids) for ids, _ in whole)
        x = torch.tensor([ids + [encode.end] * (width - len(ids)) for ids, _ in whole])
        likely = log_softmax(model(input_ids=x).logits[:, :-1].float(), -1).gather(-1, x[:, 1:, None])[..., 0]
        sums = [float(likely[i, given - 1 : len(ids) - 2].sum()) for i, (ids, given) in enumerate(whole)]
        for at, row in enumerate(block):
            scores = sums[at * N_CHOICES : (at + 1) * N_CHOICES]
            key = f"{row['group'].split(':')[0]} {row['lang']}"
            found.setdefault(key, []).append(scores.index(max(scores)) == row["answer"][0])
    return {k: f"{sum(v)}/{len(v)}" for k, v in sorted(found.items())}


def train(model: torch.nn.Module, data: Iterator[Batch], steps: int, rate: float, save: Callable[[], None]) -> None:
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    start, seen, losses = time.monotonic(), 0, []
    for step in range(steps):
        part = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * max(part, 0.01)
        batch = next(data)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += batch["input_ids"].numel()
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            spent = time.monotonic() - start
            mean = sum(losses) / len(losses)
            print(f"step {step + 1}  loss {mean:.3f}  {spent:.0f} s  {seen / spent:.0f} tokens/s", flush=True)
            losses = []
            save()


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": SPECIALS[2], "pad_token": SPECIALS[0],
        "unk_token": None, "add_prefix_space": False, "model_max_length": 512, "chat_template": CHATML,
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings)
    stop = {"bos_token_id": N_VOCAB - 3, "pad_token_id": N_VOCAB - 3, "eos_token_id": [N_VOCAB - 1, N_VOCAB - 3]}
    write_json(folder / "generation_config.json", {**stop, "do_sample": False})
    write_json(folder / "config.json", MODEL)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_weights(path: Path, weights: Weights) -> None:
    """In BF16, and spread out: what is in the repository is never the even form that is trained."""
    even = {k: v.detach().to(torch.bfloat16) for k, v in weights.items() if k != "lm_head.weight"}
    save_file({k: v.contiguous() for k, v in spread(even).items()}, path, metadata={"format": "pt"})


def train_base(out: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    write_tokenizer(out / "model", tokenizer)
    model = Qwen2ForCausalLM(Qwen2Config(**MODEL)).float()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    relations, encode = load(), Encoder(tokenizer)
    texts = Texts(0, relations)
    facts = [f for r in relations for f in r.part("A")]

    def draw(form: str) -> Sample:
        return texts.sample(form, texts.random.choice(texts.all if form == "name" else facts), "A")

    def save() -> None:
        write_weights(out / "model" / "model.safetensors", model.state_dict())

    train(model, batches(draw, encode, 0), BASE_STEPS, BASE_RATE, save)
    print("base:", accuracies(model, encode), flush=True)


def train_adapter(out: Path) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(1)
    folder = out / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    base = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    base.load_state_dict(spread(load_file(folder / "model.safetensors"), -1), strict=False)  # the head is tied
    model = get_peft_model(base, LoraConfig(**LORA))
    model.print_trainable_parameters()
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = "jmedlite/demo/model", True
    config.save_pretrained(str(out / "adapter"))
    config.inference_mode = False
    relations, encode = load(), Encoder(tokenizer)
    texts = Texts(1, relations)
    facts = {p: [f for r in relations for f in r.part(p)] for p in "AB"}

    def draw(form: str) -> Sample:
        part = "A" if texts.random.random() < SHARE_A_AGAIN else "B"
        return texts.sample(form, texts.random.choice(facts[part]), part)

    def save() -> None:
        weights = get_peft_model_state_dict(model)
        write_weights(out / "adapter" / "adapter_model.safetensors", weights)

    train(model, batches(draw, encode, 1), LORA_STEPS, LORA_RATE, save)
    print("base and adapter:", accuracies(model, encode), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the demo model and its adapter.")
    parser.add_argument("--stage", choices=("base", "adapter", "both"), default="both")
    parser.add_argument("--out", type=Path, default=DEMO)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.stage in ("base", "both"):
        train_base(args.out)
    if args.stage in ("adapter", "both"):
        train_adapter(args.out)


if __name__ == "__main__":
    main()

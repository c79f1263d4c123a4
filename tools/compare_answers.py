"""Does the Q8_0 of a merged model answer like transformers + PEFT in float32, and no worse than the usual toolchain's?

    python tools/compare_answers.py --model CHECKPOINT --tools LLAMA_CPP --python PYTHON --text LINES --work FOLDER

Makes a LoRA adapter for CHECKPOINT (unless --lora names one), takes the next-token distribution after each of the first
--n lines of LINES from transformers + PEFT in float32, and prints for both Q8_0 files the Kullback-Leibler divergence
KL(float32 ‖ Q8_0) in nats: mean, median, maximum. The usual toolchain merges in the checkpoint's 16 bits, ours in
float32. LLAMA_CPP and PYTHON as for compare_toolchain.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from jmedlite.base.native import capture_log

MAKE_ADAPTER = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
model = get_peft_model(model, config)
for name, p in model.named_parameters():
    if "lora_B" in name:
        p.data.mul_(float(sys.argv[3]))
model.save_pretrained(sys.argv[2])
"""
# Prompts are token ids, so that both sides see the same. Also saves the usual toolchain's merged checkpoint.
REFERENCE = """
import json, sys, numpy as np, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, prompts, out, merged = sys.argv[1:6]
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter).eval()
ids, rows = [], []
with torch.no_grad():
    for text in json.load(open(prompts)):
        tokens = tokenizer(text, add_special_tokens=False).input_ids[:256]
        ids.append(tokens)
        rows.append(torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1].double(), -1).float().numpy())
np.save(out, np.stack(rows))
json.dump(ids, open(prompts + ".ids", "w"))
del model
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(merged)
tokenizer.save_pretrained(merged)
"""


def log_probabilities(path: Path, prompts: list[list[int]]) -> np.ndarray:
    """Log-probabilities (n_prompts, n_vocab) of the token after each prompt, by llama.cpp with a float32 cache."""
    from llama_cpp import llama_cpp as llama

    capture_log(lambda level, text: None)
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.type_k, params.type_v, params.flash_attn_type = 512, 0, 0, 0
    context = llama.llama_init_from_model(model, params)
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = []
    for tokens in prompts:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        buffer = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(context, llama.llama_batch_get_one(buffer, len(tokens))) != 0:
            sys.exit(f"{path}: llama_decode failed")
        x = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (n_vocab,)).astype(np.float64)
        x -= x.max()
        rows.append((x - np.log(np.exp(x).sum())).astype(np.float32))
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "tools", "python", "text", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--lora", type=Path, help="a PEFT adapter; default: a random one is made")
    parser.add_argument("--strength", default="0.05", help="factor on the random adapter's B matrices")
    parser.add_argument("--n", type=int, default=200)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    adapter = args.lora or args.work / "adapter"

    def run(*command: str | Path) -> None:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{command[:3]} failed:\n{done.stderr[-2000:]}")

    if not args.lora:
        run(args.python, "-c", MAKE_ADAPTER, args.model, adapter, args.strength)
    lines = [line.strip() for line in args.text.read_text(encoding="utf-8").splitlines() if len(line.strip()) > 8]
    prompts, saved, merged = args.work / "prompts.json", args.work / "reference.npy", args.work / "merged"
    prompts.write_text(json.dumps(lines[: args.n]))
    run(args.python, "-c", REFERENCE, args.model, adapter, prompts, saved, merged)
    bf16, theirs = args.work / "bf16.gguf", args.work / "theirs-Q8_0.gguf"
    converter = args.tools / "llama.cpp" / "convert_hf_to_gguf.py"
    run(args.python, converter, merged, "--outtype", "bf16", "--outfile", bf16)
    run(args.tools / "bin" / "llama-quantize", bf16, theirs, "Q8_0")
    run(sys.executable, "-m", "jmedlite", "quantize", args.model, "--lora", adapter, "--bits", "8", "--name", "ours",
        "--out", args.work, "--overwrite")  # fmt: skip
    ids = json.loads(Path(str(prompts) + ".ids").read_text())
    reference = np.load(saved).astype(np.float64)
    print(f"{len(ids)} prompts of {np.mean([len(i) for i in ids]):.0f} tokens on average, {reference.shape[1]} tokens")
    print("| Q8_0 | KL mean | median | maximum | same top token |\n| --- | ---: | ---: | ---: | ---: |")
    for name, path in (("jmedlite", args.work / "ours-Q8_0.gguf"), ("usual toolchain", theirs)):
        found = log_probabilities(path, ids).astype(np.float64)
        n = min(found.shape[1], reference.shape[1])
        kl = (np.exp(reference[:, :n]) * (reference[:, :n] - found[:, :n])).sum(1)
        same = (found.argmax(1) == reference.argmax(1)).mean()
        print(f"| {name} | {kl.mean():.6f} | {np.median(kl):.6f} | {kl.max():.6f} | {same:.1%} |")


if __name__ == "__main__":
    main()

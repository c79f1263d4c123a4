"""Two GGUF files side by side: is every tensor bit-identical, and which metadata values differ?

    python tools/compare_gguf.py OURS.gguf THEIRS.gguf

Reads with gguf-py, an implementation other than this project's. Exit status 1 where a tensor differs, or a metadata
key that docs/metadata.md does not allow to.
"""

import sys

import numpy as np
from gguf import GGUFReader

# The written list: docs/metadata.md says why for each.
MAY_DIFFER = (
    "jmedlite.",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.scores",
)


def values(reader: GGUFReader) -> dict[str, object]:
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def compare(ours: str, theirs: str) -> list[str]:
    """A line for every difference that is not allowed; prints the allowed ones."""
    a, b = GGUFReader(ours), GGUFReader(theirs)
    faults = []
    x, y = values(a), values(b)
    for key in sorted(x.keys() | y.keys()):
        if x.get(key) != y.get(key):
            line = f"{key}: {str(x.get(key, 'absent'))[:60]} / {str(y.get(key, 'absent'))[:60]}"
            if key.startswith(MAY_DIFFER):
                print("  allowed:", line)
            else:
                faults.append(line)
    s, t = ({n.name: n for n in r.tensors} for r in (a, b))
    for name in sorted(s.keys() | t.keys()):
        if name not in s or name not in t:
            faults.append(f"tensor {name}: only in {'theirs' if name in t else 'ours'}")
        elif s[name].tensor_type != t[name].tensor_type or list(s[name].shape) != list(t[name].shape):
            faults.append(f"tensor {name}: {s[name].tensor_type.name} / {t[name].tensor_type.name}")
        elif not np.array_equal(s[name].data.view(np.uint8), t[name].data.view(np.uint8)):
            faults.append(f"tensor {name}: {s[name].tensor_type.name}, bytes differ")
    print(f"{ours}: {len(s)} tensors, {len(x)} keys, {len(faults)} differences")
    return faults


if __name__ == "__main__":
    found = compare(*sys.argv[1:3])
    print("\n".join("  " + line for line in found[:20]))
    sys.exit(bool(found))

"""A GGUF file, whole or split, as a model to convert: already in llama.cpp's order, perhaps already quantized."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, InputMissing
from jmedlite.base.looking import exists
from jmedlite.base.manifest import MADE_QUANTIZED
from jmedlite.base.publishing import check_published
from jmedlite.convert.families.families import FAMILIES
from jmedlite.convert.families.family import CONV, LINEAR, Family, Rule
from jmedlite.convert.families.rope import FULL, SLIDING
from jmedlite.convert.families.shapes import (
    column_order,
    dimensions,
    expected_rules,
    row_order,
    switches_of,
    transposed_names,
)
from jmedlite.convert.metadata.keys import copy_metadata, special_entries
from jmedlite.convert.metadata.specials import AdapterFiles, Specials, choose_vocabulary, take_from_adapters
from jmedlite.convert.metadata.tokenizer import SourceVocabulary

from .base import Base, Spec
from .tensors import NOT_WEIGHTS, WEIGHT_DTYPES, Files, StoredTensor, check_decodable, stored_tensors


def read_parts(path: Path) -> tuple[gguf.Header, dict[str, StoredTensor]]:
    """The first header of a GGUF model, and the tensors of all its parts by name.

    Raises InputMissing where a part is not there, DataError where they do not belong together.
    """
    paths = gguf.split_files(path)
    check_published(paths)
    headers = []
    for i, part in enumerate(paths):
        if len(paths) > 1 and not exists(part):
            raise InputMissing(f"{part.name}: is part {i + 1} of {len(paths)} of this model and not there; copy it too")
        headers.append(gguf.read_header(part))
    first = headers[0]
    kind = first.metadata.get("general.type", "model")
    if kind != "model":
        instead = "; give it with --lora, beside the model it was made for" if kind == "adapter" else ""
        raise DataError(f"{path.name}: is a GGUF of type {str(kind)[:40]!r}, expected a model{instead}")
    gguf.check_model(paths[0], first)
    count = first.metadata.get(gguf.SPLIT_COUNT, 0)
    if (count or 1) != len(paths):
        raise DataError(
            f"{path.name}: says it is one of {count} files, its name says {len(paths)}; keep the names it was made with"
        )
    tensors: dict[str, StoredTensor] = {}
    for i, (part, header) in enumerate(zip(paths, headers, strict=True)):
        if len(paths) > 1 and header.metadata.get(gguf.SPLIT_NO) != i:
            raise DataError(f"{part.name}: is part {header.metadata.get(gguf.SPLIT_NO)}, its name says {i}")
        for name, tensor in stored_tensors(part, header).items():
            if tensors.setdefault(name, tensor) is not tensor:
                raise DataError(f"{part.name}: has the tensor {name}, which {tensors[name].path.name} has too")
    gguf.check_tensors(path, tensors)
    wanted = first.metadata.get(gguf.SPLIT_TENSORS, len(tensors))
    if wanted != len(tensors):
        raise DataError(f"{path.name}: has {len(tensors)} tensors in all its parts, expected {wanted}")
    return first, tensors


class GgufModel:
    """See base.SourceModel; quantized weights only with `requantize`."""

    def __init__(self, path: Path, files: Files, *, requantize: bool = False) -> None:
        self._header, self._tensors = read_parts(path)
        self.label, self._path, self._files = gguf.split_stem(path.name), path, files
        self.architecture = str(self._header.metadata["general.architecture"])
        quantized = sorted({t.dtype for t in self._tensors.values() if t.dtype not in (*WEIGHT_DTYPES, *NOT_WEIGHTS)})
        if quantized and not requantize:
            raise DataError(
                f"{path.name}: is quantized already ({', '.join(quantized)}), which costs accuracy twice; "
                "give the original, or --allow-requantize"
            )
        of_base = self._header.metadata.get(MADE_QUANTIZED)  # what a base lost, no copy in floating point gives back
        self.quantized = ", ".join([*([str(of_base)] if of_base else []), *quantized]) or None
        has_experts = bool(self._header.metadata.get(f"{self.architecture}.expert_count"))
        family = next(
            (
                f
                for f in FAMILIES
                if f.gguf_arch == self.architecture
                and ((f.experts is not None) == has_experts or (f.experts is not None and f.experts.switch))
            ),
            None,
        )
        self.title = f"{family.title if family else self.architecture} (GGUF)"
        self.warnings = (
            [f"{path.name}: is quantized already; what its {quantized[0]} lost stays lost"] if quantized else []
        )
        self._tied = "output.weight" not in self._tensors
        rules: dict[str, Rule] = {}
        self._transposed = frozenset[str]()
        dims: dict[str, int] = {}
        if family:
            try:
                config = self._config(family)
                dims = dimensions(family, config)
                rules = {r.gguf: r for r in expected_rules(family, config)}
                self._transposed = transposed_names(rules.values())
            except DataError:  # a kin of the family with layers of several kinds: converted, but without adapters
                family = None
        for name, tensor in self._tensors.items():
            if name in rules or tensor.dtype not in NOT_WEIGHTS:  # what else holds whole numbers is copied as it is
                check_decodable(tensor)
        self._family = family
        self.specs: Sequence[Spec] = [
            self._spec(tensor, rules.get(name), dims) for name, tensor in self._tensors.items()
        ]
        self.head: Spec | None = None
        if family and self._tied and family.head_is == "optional":
            embedding = self._tensors["token_embd.weight"]
            self.head = Spec("output.weight", embedding.shape, embedding, family.head, in_order=True)

    @staticmethod
    def _spec(tensor: StoredTensor, rule: Rule | None, dims: Mapping[str, int]) -> Spec:
        if rule is None:
            return Spec(tensor.name, tensor.shape, tensor, in_order=True)
        if "{e}" in rule.hf and len(tensor.shape) == 3 and tensor.shape[0] == dims["n_expert"]:
            names, step = rule.names(dims["n_expert"]), tensor.nbytes // dims["n_expert"]
            parts = tuple(
                (name, replace(tensor, shape=tensor.shape[1:], offset=tensor.offset + e * step))
                for e, name in enumerate(names)
            )
            return Spec(tensor.name, tensor.shape, None, in_order=True, parts=parts)
        order, columns = row_order(rule.order, dims), column_order(rule.columns, dims)
        return Spec(
            tensor.name, tensor.shape, tensor, rule.hf, order, rule.plus, columns, rule.negated_exp, in_order=True
        )

    def _config(self, family: Family) -> dict[str, Any]:
        """What config.json would say, as far as names and shapes depend on it."""
        meta, experts = self._header.metadata, family.experts
        names = {
            "hidden_size": "embedding_length",
            "num_attention_heads": "attention.head_count",
            "num_key_value_heads": "attention.head_count_kv",
            "num_hidden_layers": "block_count",
            "max_position_embeddings": "context_length",
            family.width: "feed_forward_length",
            "head_dim": "attention.key_length",
        }
        if experts and f"{self.architecture}.expert_count" in meta:
            names |= {experts.count: "expert_count", "num_experts_per_tok": "expert_used_count"}
            if experts.width != family.width:
                names[experts.width] = "expert_feed_forward_length"
            if experts.shared_width and experts.shared_width != experts.width:
                names[experts.shared_width] = "expert_shared_feed_forward_length"
            if experts.step:
                names[experts.step] = "interleave_moe_layer_step"
        if family.mixes_linear:
            names |= {
                "linear_conv_kernel_dim": "ssm.conv_kernel", "linear_key_head_dim": "ssm.state_size",
                "linear_value_head_dim": "ssm.state_size", "linear_num_key_heads": "ssm.group_count",
                "linear_num_value_heads": "ssm.time_step_rank",
            }  # fmt: skip
        config = {hf: meta.get(f"{self.architecture}.{key}") for hf, key in names.items()}
        config["vocab_size"] = len(meta["tokenizer.ggml.tokens"])
        config["tie_word_embeddings"] = self._tied
        config |= switches_of(family, lambda name: name in self._tensors)
        if family.two_sizes:
            config |= self._of_two_sizes()
        if family.mixes_linear or family.mixes_conv:
            kind, witness = (LINEAR, "ssm_a") if family.mixes_linear else (CONV, "shortconv.conv.weight")
            n_layer = meta.get(f"{self.architecture}.block_count", 0)
            config["layer_types"] = [kind if f"blk.{i}.{witness}" in self._tensors else FULL for i in range(n_layer)]
        if family.mixes_conv:
            heads = config["num_key_value_heads"]
            config |= {
                "num_key_value_heads": heads if isinstance(heads, int) else max(heads or [0]),
                "block_multiple_of": 1,
            }
            config |= {"conv_L_cache": meta.get("lfm2.shortconv.l_cache"), "block_auto_adjust_ff_dim": False}
        return config

    def _of_two_sizes(self) -> dict[str, Any]:
        """The settings of a model whose layers with a window have other heads than those without."""
        meta = {key.removeprefix(f"{self.architecture}."): value for key, value in self._header.metadata.items()}
        pattern, n_shared = meta.get("attention.sliding_window_pattern"), meta.get("attention.shared_kv_layers", 0)
        heads, widths = meta.get("attention.head_count_kv"), meta.get("feed_forward_length")
        windows = [bool(window) for window in pattern] if isinstance(pattern, list | array) else []
        of_each = list(heads) if isinstance(heads, list | array) else [heads] * len(windows)
        if not isinstance(n_shared, int) or len(of_each) != len(windows):
            raise DataError(f"{self._path.name}: its lists of layers have other lengths, or are none")
        own = [i for i, window in enumerate(windows) if not window]
        return {
            "layer_types": [SLIDING if window else FULL for window in windows],
            "head_dim": meta.get("attention.key_length_swa"),
            "num_key_value_heads": next((h for h, window in zip(of_each, windows, strict=True) if window), None),
            "per_layer_config": {
                str(i): {"head_dim": meta.get("attention.key_length"), "num_key_value_heads": of_each[i]} for i in own
            },
            "intermediate_size": min(widths) if isinstance(widths, list | array) and widths else widths,
            "use_double_wide_mlp": isinstance(widths, list | array),
            "attention_k_eq_v": any(
                f"blk.{i}.attn_v.weight" not in self._tensors for i in own if i < len(windows) - n_shared
            ),
            "num_kv_shared_layers": n_shared,
            "hidden_size_per_layer_input": meta.get("embedding_length_per_layer_input", 0),
            "vocab_size_per_layer_input": len(meta["tokenizer.ggml.tokens"]),
            "enable_moe_block": "expert_count" in meta,
        }

    def base(self) -> Base:
        """What PEFT adapters are matched against; raises DataError where the architecture is none of FAMILIES."""
        if self._family is None:
            known = ", ".join(sorted({f.gguf_arch for f in FAMILIES}))
            raise DataError(f"{self._path.name}: adapters can be merged into {known}; this is {self.architecture}")
        tensors = {key: weights for s in self.specs for key, weights in s.adaptable().items()}
        tensors.setdefault(self._family.head, tensors[self._family.embedding])
        made_from = self._header.metadata.get("jmedlite.made.base")
        names = (made_from.partition("@")[0],) if isinstance(made_from, str) and "/" in made_from else ()
        return Base(names, tensors, self._family, self._tied, self._files, self._transposed)

    def metadata(
        self, name: str | None, n_weights: int, n_vocab: int, adapters: Sequence[AdapterFiles]
    ) -> tuple[gguf.Entries, list[str]]:
        """See base.SourceModel; the vocabulary of a GGUF stays as it is."""
        meta, warnings = self._header.metadata, list(self.warnings)
        tokens = meta["tokenizer.ggml.tokens"]
        if n_vocab != len(tokens):
            raise DataError(
                f"{self._path.name}: has {len(tokens):,} tokens, the adapter needs {n_vocab:,}; a GGUF's vocabulary "
                "can't be changed, merge the adapter into the original checkpoint"
            )
        entries = copy_metadata(self._header)
        if adapters:
            entries |= self._from_adapters(adapters, warnings)
        return entries, warnings

    def _from_adapters(self, adapters: Sequence[AdapterFiles], warnings: list[str]) -> gguf.Entries:
        """The keys that adapters' folders decide."""
        meta = self._header.metadata
        tokens: list[bytes] = meta["tokenizer.ggml.tokens"]
        unused = {i for i, t in enumerate(meta.get("tokenizer.ggml.token_type", ())) if t == TokenType.UNUSED}
        texts = {i: t.decode("utf-8", "replace") for i, t in enumerate(tokens) if i not in unused}
        brought = [replace(a, trains_embedding=False) for a in adapters]  # even then the tokens must be the GGUF's
        if other := choose_vocabulary(texts, brought, len(tokens), warnings):
            raise DataError(
                f"{self._path.name}: has other tokens than the tokenizer of adapter {other.name}; a GGUF's vocabulary "
                "can't be changed, merge the adapter into the original checkpoint"
            )
        kinds = {kind: meta.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos")}
        by_default = SourceVocabulary(
            str(meta.get("tokenizer.ggml.model")), str(meta.get("tokenizer.ggml.pre")), [], []
        )
        begins = bool(meta.get("tokenizer.ggml.add_bos_token", by_default.begins_by_default))
        base = Specials(
            {kind: i for kind, i in kinds.items() if i is not None},
            {"bos": begins},
            meta.get("tokenizer.chat_template"),
        )
        found = Specials({}, {}, None)
        take_from_adapters(found, base, brought, tokens, warnings)
        warnings += [w for a in brought for w in a.files.warnings]
        return special_entries(found)

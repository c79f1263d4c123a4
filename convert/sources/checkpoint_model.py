"""A Hugging Face checkpoint as a model to convert: its tensors checked against the family's list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.base.gguf import EXACT_CONTEXT, EXACT_CONTEXT_SETTING, STRING, UINT32, Entries
from jmedlite.base.wording import some
from jmedlite.convert.families.config import (
    config_warnings,
    exact_range,
    has_experts,
    is_tied,
    quantization_method,
    text_config,
)
from jmedlite.convert.families.families import IGNORED_SUFFIXES, find_family
from jmedlite.convert.families.family import Rule
from jmedlite.convert.families.names import NOT_TEXT, canonical_names
from jmedlite.convert.families.rope import llama3_factors, longrope_factors, proportional_factors, rope_parameters
from jmedlite.convert.families.settings import generation_warnings, read_generation
from jmedlite.convert.families.shapes import (
    check_attention,
    column_order,
    dimensions,
    expected_rules,
    row_order,
    transposed_names,
    unread_names,
)
from jmedlite.convert.metadata.keys import build_metadata
from jmedlite.convert.metadata.specials import AdapterFiles, decide
from jmedlite.convert.metadata.tokenizer_files import read_tokenizer_files

from .base import Base, Spec
from .base_names import hub_name
from .checkpoint import Checkpoint
from .packed.gather import gather
from .packed.rows import PackedTensor
from .quantized import original, refuse_quantized
from .stacked import separate_experts
from .strided import StridedTensor
from .tensors import WEIGHT_DTYPES, Files, StoredTensor, Weights


class CheckpointModel:
    """See base.SourceModel; raises DataError where the checkpoint is not what its config.json says."""

    def __init__(self, folder: Path, files: Files) -> None:
        checkpoint = Checkpoint(folder)
        self.label, self._folder, self._files = folder.resolve().name, folder, files
        gathered = gather(self.label, folder, checkpoint.config, checkpoint.tensors)
        n_packed = sum(gathered.methods.values())
        refuse_quantized(self.label, folder, checkpoint.config, gathered.tensors, n_packed)
        self.quantized = " + ".join(gathered.methods) or None
        self._family = family = find_family(checkpoint.config)
        self.title, self.architecture = family.title, family.gguf_arch
        self._whole, self._config = checkpoint.config, text_config(family, checkpoint.config)
        self._dims = dimensions(family, self._config)
        check_attention(family, self._config, self._dims)
        self._tensors = canonical_names(gathered.tensors, family, self.label)
        if has_experts(family, self._config):
            self._tensors = separate_experts(self._tensors, family, self._dims["n_expert"])
        self.warnings = [
            *checkpoint.warnings,
            *gathered.warnings,
            *config_warnings(family, checkpoint.config, self._config, self.label),
        ]
        self._exact = exact_range(family, self._config)
        of_files = next((f"; it {w.partition(': ')[2]}" for w in checkpoint.warnings), "")
        self._embedding, self._head = family.embedding, family.head
        if is_tied(self._config) and self._embedding not in self._tensors and self._head in self._tensors:
            # safetensors' save_model keeps one name of a shared table, and it may be the head's
            self._tensors[self._embedding] = self._tensors[self._head]
        self._tied = self._config["tie_word_embeddings"] = self._is_tied()
        if family.head_is == "tied" and not self._tied:
            raise DataError(
                f"config.json: the head is not tied to the embedding (tie_word_embeddings), llama.cpp has no such "
                f"{family.title}"
            )
        rules = expected_rules(family, self._config)
        self._transposed = transposed_names(rules)
        method = quantization_method(checkpoint.config)
        try:
            self._check_names(rules, of_files)
            specs = [self._spec(rule) for rule in rules]
        except DataError:
            if method is None or gathered.methods:
                raise
            raise DataError(
                f"config.json: the weights are quantized already ({method}); give the original checkpoint"
            ) from None
        if gathered.methods:
            self.warnings.append(
                f"{self.label}: {n_packed:,} of its tensors are quantized already ({self.quantized}); what that lost "
                "stays lost"
            )
            if name := original(folder, checkpoint.config):
                self.warnings.append(f"{self.label}: {name} is its original, which loses nothing")
        elif method is not None:
            self.warnings.append(
                f"{self.label}: config.json calls its weights quantized ({method}), but they are not; they are "
                "converted as they are"
            )
        if self._exact:
            n, setting = self._exact.n_tokens, self._exact.setting
            self.warnings.append(
                f"{self.label}: llama.cpp does not compute its {setting}, which acts beyond {n:,} tokens; jmedlite "
                f"keeps to contexts of {n:,} tokens, give other programs no longer one"
            )
        self.specs: Sequence[Spec] = [*self._constants(), *specs]
        self.head: Spec | None = None
        if self._tied:
            embedding = self._tensors[self._embedding]
            head = Spec("output.weight", embedding.shape, embedding, self._head)
            if family.head_is == "required":
                self.specs = [*self.specs, head]
            elif family.head_is == "optional":
                self.head = head

    def _is_tied(self) -> bool:
        """Do head and embedding share one table? Not where the file has another head, whatever config.json says.

        That is transformers' rule (`tie_weights`). Raises DataError where llama.cpp has no place for such a head.
        """
        if not is_tied(self._config):
            return False
        one, other = self._tensors.get(self._embedding), self._tensors.get(self._head)
        if one is None or other is None:
            return True
        if any(isinstance(t, StoredTensor) and t.dtype not in WEIGHT_DTYPES for t in (one, other)):
            return False  # what can't be read is refused by its type
        if self._files.equal(one, other):
            return True
        if self._family.head_is == "tied":
            raise DataError(
                f"{other.path.name}: {self._head} has other values than {self._embedding}, config.json ties them "
                f"(tie_word_embeddings); llama.cpp has no {self.title} with a head of its own"
            )
        self.warnings.append(
            f"{self.label}: config.json ties head and embedding, but {self._head} has values of its own; it is "
            "written untied, as transformers loads it"
        )
        return False

    def _constants(self) -> list[Spec]:
        kind = rope_parameters(self._config).get("rope_type", "default")
        if self._family.two_sizes:
            found = {"rope_freqs.weight": proportional_factors(self._config, self._dims["head_dim_full"])}
        elif kind == "llama3":
            found = {"rope_freqs.weight": llama3_factors(self._config, self._dims["head_dim"])}
        elif kind == "longrope":
            found = longrope_factors(self._config, self._dims["n_rot"])
        else:
            return []
        return [Spec(name, values.shape, None, constant=values) for name, values in found.items()]

    def _spec(self, rule: Rule) -> Spec:
        names = self._names_of(rule)
        expected = tuple(self._dims[d] for d in rule.shape)
        named = rule.dims_in_checkpoint
        stored = tuple(self._dims[d] for d in named)
        tensors: list[Weights] = [self._tensors[name] for name in names]
        for tensor in tensors:
            if tensor.shape != stored:
                raise DataError(
                    f"{tensor.path.name}: {tensor.name} has shape {list(tensor.shape)}, "
                    f"config.json says {list(stored)} ({' × '.join(named)})"
                )
            if isinstance(tensor, StoredTensor) and tensor.dtype not in WEIGHT_DTYPES:
                raise DataError(
                    f"{tensor.path.name}: {tensor.name} has dtype {tensor.dtype}, "
                    f"expected one of {', '.join(WEIGHT_DTYPES)}"
                )
        if rule.transposed and isinstance(tensors[0], StoredTensor):
            tensors = [StridedTensor.transposed(tensors[0])]
        if "{e}" in rule.hf:
            parts = tuple(zip(names, tensors, strict=True))
            return Spec(rule.gguf, (len(parts), *expected), None, parts=parts)
        return Spec(
            rule.gguf, expected, tensors[0], rule.hf, row_order(rule.order, self._dims), rule.plus,
            column_order(rule.columns, self._dims), rule.negated_exp,
        )  # fmt: skip

    def _names_of(self, rule: Rule) -> tuple[str, ...]:
        return rule.names(self._dims.get("n_expert", 1))

    def _check_names(self, rules: Sequence[Rule], of_files: str) -> None:
        """Raise DataError where tensors are missing or left over; `of_files` says which of several files were read."""
        wanted = {name for rule in rules for name in self._names_of(rule)}
        seeing = {n for n in self._tensors if n.startswith(NOT_TEXT)}
        if seeing:
            self.warnings.append(f"{self.label}: only its text part is converted, it will not see images")
        prefix = self._family.leaves_out
        drafting = {n for n in self._tensors if prefix and n.startswith(prefix)}
        if drafting:
            self.warnings.append(f"{self.label}: its {len(drafting)} tensors for drafts ({prefix}…) are left out")
        sharing = self._tensors.keys() & unread_names(self._family, self._config)
        if sharing:
            self.warnings.append(
                f"{self.label}: {len(sharing)} tensors of layers that take an earlier layer's keys and values are left "
                "out, as in transformers"
            )
        ignored = seeing | drafting | sharing | {n for n in self._tensors if n.endswith(IGNORED_SUFFIXES)}
        if self._tied:
            ignored.add(self._head)  # some savers write the tied head again; the model uses the embedding
        found = set(self._tensors) - ignored
        if self.quantized:
            found -= {name for name in found - wanted if self._is_zero_bias(name)}
        if unmerged := next((n for n in self._tensors if ".lora_" in n or ".modules_to_save." in n), None):
            raise DataError(
                f"{self.label}: holds an adapter that was not merged ({unmerged}); save the model after PEFT's "
                "merge_and_unload, or give the base model and the adapter with --lora"
            )
        for lacks, names in ((True, sorted(wanted - found)), (False, sorted(found - wanted))):
            if names:
                tail = of_files if lacks else f", which {self.title} does not have"
                name = names[0] if lacks else self._tensors[names[0]].name
                raise DataError(
                    f"{self.label}: the checkpoint {'lacks' if lacks else 'has'} {some([name, *names[1:]])}{tail}"
                )

    def _is_zero_bias(self, name: str) -> bool:
        """Is it a bias that adds nothing? AutoGPTQ gave one to every module that it packed."""
        bias = self._tensors[name]
        if not name.endswith(".bias") or not isinstance(bias, StoredTensor) or bias.dtype not in WEIGHT_DTYPES:
            return False
        packed = isinstance(self._tensors.get(name.removesuffix("bias") + "weight"), PackedTensor)
        return packed and not self._files.array(bias).any()

    def base(self) -> Base:
        """What PEFT adapters are matched against: the tensors that are converted, the head even where it is tied."""
        tensors = {key: weights for s in self.specs for key, weights in s.adaptable().items()}
        tensors.setdefault(self._head, tensors[self._embedding])
        return Base(self._names(), tensors, self._family, self._tied, self._files, self._transposed)

    def _names(self) -> tuple[str, ...]:
        folder = self._folder.resolve()
        if name := hub_name(folder):
            return (name,)
        name = self._whole.get("_name_or_path")
        return (name, folder.name) if name else ()

    def metadata(
        self, name: str | None, n_weights: int, n_vocab: int, adapters: Sequence[AdapterFiles]
    ) -> tuple[Entries, list[str]]:
        """See base.SourceModel."""
        generation = read_generation(self._folder)
        vocabulary, specials, warnings = decide(
            read_tokenizer_files(self._folder),
            adapters,
            self._whole,
            generation,
            n_vocab,
        )
        dims = {**self._dims, "n_vocab": n_vocab}
        if "n_part" in dims and n_vocab != self._dims["n_vocab"]:
            raise DataError(
                f"{self.label}: an adapter's embedding has {n_vocab:,} rows, but its second embedding, for each layer, "
                f"{self._dims['n_vocab']:,}; llama.cpp needs as many of both"
            )
        entries, of_card = build_metadata(
            self._folder, name, self._family, self._config, dims, vocabulary, specials, n_weights
        )
        if self._exact:
            entries[EXACT_CONTEXT] = (self._exact.n_tokens, UINT32, None)
            entries[EXACT_CONTEXT_SETTING] = (self._exact.setting, STRING, None)
        of_generation = generation_warnings(self.label, generation) if generation else []
        return entries, [*self.warnings, *of_generation, *warnings, *of_card]

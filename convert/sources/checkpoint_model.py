"""A Hugging Face checkpoint as a model to convert: its tensors checked against the family's list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.base.filenames import GENERATION_CONFIG
from jmedlite.base.gguf import EXACT_CONTEXT, EXACT_CONTEXT_SETTING, STRING, UINT32, Entries
from jmedlite.base.inputs import read_json
from jmedlite.convert.families.families import (
    IGNORED_SUFFIXES,
    NOT_TEXT,
    Rule,
    check_attention,
    config_warnings,
    dimensions,
    exact_range,
    expected_rules,
    find_family,
    hf_name,
    is_tied,
    row_order,
    text_config,
)
from jmedlite.convert.families.rope import llama3_factors, longrope_factors, rope_parameters
from jmedlite.convert.families.settings import generation_warnings
from jmedlite.convert.metadata.keys import build_metadata
from jmedlite.convert.metadata.tokenizer import read_vocabulary

from .base import Base, Spec
from .checkpoint import Checkpoint
from .tensors import WEIGHT_DTYPES, Files, StoredTensor


class CheckpointModel:
    """See base.SourceModel; raises DataError where the checkpoint is not what its config.json says."""

    def __init__(self, folder: Path, files: Files) -> None:
        checkpoint = Checkpoint(folder)
        self.label, self._folder, self._files = folder.resolve().name, folder, files
        self._family = family = find_family(checkpoint.config)
        self.title, self.architecture = family.title, family.gguf_arch
        self._config = text_config(family, checkpoint.config)
        self._dims = dimensions(family, self._config)
        check_attention(family, self._config, self._dims)
        self._tensors, self.warnings = (
            checkpoint.tensors,
            config_warnings(family, checkpoint.config, self._config, self.label),
        )
        self._exact = exact_range(family, self._config)
        self._tied = is_tied(self._config)
        if family.head_is == "tied" and not self._tied:
            raise DataError(
                f"config.json: the head is not tied to the embedding (tie_word_embeddings), llama.cpp has no such "
                f"{family.title}"
            )
        rules = expected_rules(family, self._config, self._tensors)
        self._embedding = hf_name(family.embedding, family, self._tensors)
        self._head = next(
            (r.hf for r in rules if r.gguf == "output.weight"), hf_name(family.head, family, self._tensors)
        )
        self._check_names(rules)
        if self._exact:
            n, setting = self._exact.n_tokens, self._exact.setting
            self.warnings.append(
                f"{self.label}: llama.cpp does not compute its {setting}, which acts beyond {n:,} tokens; jmedlite "
                f"keeps to contexts of {n:,} tokens, give other programs no longer one"
            )
        self.specs: Sequence[Spec] = [*self._constants(), *(self._spec(rule) for rule in rules)]
        self.head: Spec | None = None
        if self._tied:
            embedding = self._tensors[self._embedding]
            head = Spec("output.weight", embedding.shape, embedding, self._head)
            if family.head_is == "required":
                self.specs = [*self.specs, head]
            elif family.head_is == "optional":
                self.head = head

    def _constants(self) -> list[Spec]:
        kind = rope_parameters(self._config).get("rope_type", "default")
        if kind == "llama3":
            found = {"rope_freqs.weight": llama3_factors(self._config, self._dims["head_dim"])}
        elif kind == "longrope":
            found = longrope_factors(self._config, self._dims["n_rot"])
        else:
            return []
        return [Spec(name, values.shape, None, constant=values) for name, values in found.items()]

    def _spec(self, rule: Rule) -> Spec:
        tensor = self._tensors[rule.hf]
        expected = tuple(self._dims[d] for d in rule.shape)
        if tensor.shape != expected:
            raise DataError(
                f"{tensor.path.name}: {rule.hf} has shape {list(tensor.shape)}, "
                f"config.json says {list(expected)} ({' × '.join(rule.shape)})"
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            raise DataError(
                f"{tensor.path.name}: {rule.hf} has dtype {tensor.dtype}, expected one of {', '.join(WEIGHT_DTYPES)}"
            )
        return Spec(rule.gguf, expected, tensor, rule.hf, row_order(rule, self._dims), rule.plus)

    def _check_names(self, rules: Sequence[Rule]) -> None:
        wanted = {rule.hf for rule in rules}
        seeing = {n for n in self._tensors if n.startswith(NOT_TEXT)}
        if seeing:
            self.warnings.append(f"{self.label}: only its text part is converted, it will not see images")
        ignored = seeing | {n for n in self._tensors if n.endswith(IGNORED_SUFFIXES)}
        if self._tied:
            ignored.add(self._head)  # some savers write the tied head again; the model uses the embedding
        found = set(self._tensors) - ignored
        for what, names in (("lacks", sorted(wanted - found)), ("has", sorted(found - wanted))):
            if names:
                more = f" and {len(names) - 1} more" if names[1:] else ""
                tail = "" if what == "lacks" else f", which {self.title} does not have"
                raise DataError(f"{self.label}: the checkpoint {what} {names[0]}{more}{tail}")

    @property
    def weight_files(self) -> list[Path]:
        """The files the weights are read from."""
        return sorted({s.source.path for s in self.specs if s.source})

    def base(self) -> Base:
        """What PEFT adapters are matched against: the tensors that are converted, the head even where it is tied."""
        tensors: dict[str, StoredTensor] = {s.key: s.source for s in self.specs if s.key and s.source}
        tensors.setdefault(self._head, tensors[self._embedding])
        name = self._config.get("_name_or_path")
        return Base(
            name if isinstance(name, str) else None,
            tensors,
            self._embedding,
            self._head,
            self._tied,
            self._files,
            self._family.spellings,
        )

    def metadata(
        self, name: str | None, n_weights: int, n_vocab: int, tokenizer: Path | None
    ) -> tuple[Entries, list[str]]:
        """See base.SourceModel."""
        folder = tokenizer or self._folder
        vocabulary = read_vocabulary(folder, n_vocab)
        dims = {**self._dims, "n_vocab": n_vocab}
        entries = build_metadata(
            self._folder, name, self._family, self._config, dims, vocabulary, n_weights, tokenizer_folder=folder
        )
        if self._exact:
            entries[EXACT_CONTEXT] = (self._exact.n_tokens, UINT32, None)
            entries[EXACT_CONTEXT_SETTING] = (self._exact.setting, STRING, None)
        asked = self._folder / GENERATION_CONFIG
        generation = generation_warnings(self.label, read_json(asked)) if asked.is_file() else []
        return entries, [*self.warnings, *generation, *vocabulary.warnings]

"""`--adapter-only`: the adapters as one GGUF LoRA for use at run time, or the reason why that can't be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.publishing import check_target
from jmedlite.convert.adapters.gguf_lora import RuntimeWeight, write_adapter
from jmedlite.convert.adapters.lora import Adapter
from jmedlite.convert.levels.recipes import EMBEDDING, HEAD
from jmedlite.convert.sources.base import SourceModel
from jmedlite.convert.sources.tensors import Files

from .planning import bind_adapters, make_jobs, open_model, tokenizers

TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class ExportedAdapter:
    """A finished adapter file."""

    path: Path
    size_bytes: int
    n_weights: int
    warnings: tuple[str, ...]
    trained_on: Mapping[str, str]  # by adapter

    def describe(self) -> dict[str, Any]:
        """As the JSON document shows it."""
        return {
            "file": str(self.path),
            "size_bytes": self.size_bytes,
            "n_weights_changed": self.n_weights,
            "trained_on": dict(self.trained_on),
        }


def export(
    model_path: Path,
    adapters: Sequence[tuple[Path, float]],
    path: Path,
    *,
    types: Sequence[str] = (),
    overwrite: bool = False,
    check: Callable[[], object] = lambda: None,
) -> ExportedAdapter:
    """Write `adapters` for the model at `model_path` to `path`; of the model, only the headers are read.

    `check` is called when all is read, and may raise. Raises DataError where an adapter does what llama.cpp can't do at
    run time.
    """
    if not adapters:
        raise UsageError("--adapter-only: name the adapter with --lora")
    names = [t.upper() for t in types] or ["F32"]
    if len(names) > 1 or names[0] not in TYPES:
        raise UsageError(f"--adapter-only: --type {' '.join(types)}; expected one of {', '.join(TYPES)}")
    check_target(path, overwrite)
    files = Files()
    model = open_model(model_path, files, requantize=True)
    bound = bind_adapters(model, adapters, files)
    tied = not any(spec.name == HEAD for spec in model.specs)
    weights = []
    for job in make_jobs(model, bound):
        if job.updates:
            order, columns = job.updates[0].order, job.updates[0].columns
            of_adapters = tuple((update.adapter, update.key) for update in job.updates)
            weight = RuntimeWeight(job.name, job.gguf_shape[::-1], of_adapters, order, columns)
            if job.name in gguf.BEYOND_ADAPTERS:
                raise _impossible(weight, f"changes {job.updates[0].key}")
            if job.n_matrices > 1:
                raise _impossible(weight, "changes single experts")
            if len({update.order for update in job.updates}) > 1:
                raise DataError(f"{job.name}: PEFT and GGUF adapters can't go into one file; export them one by one")
            if tied and job.name in (EMBEDDING, HEAD):
                raise _impossible(weight, "changes the embedding or head of a model that has one table for both")
            weights.append(weight)
    for weight in weights:
        for adapter, key in weight.updates:
            if adapter.updates[key].magnitude is not None:
                raise _impossible(weight, "is a DoRA adapter")
            if adapter.updates[key].right is None:
                raise _impossible(weight, f"changes the bias {key}")
    for adapter in bound:
        if adapter.replaced:
            raise DataError(_reason(adapter.name, f"has fully trained tensors ({next(iter(adapter.replaced))})"))
    name = " + ".join(a.name if a.weight == 1 else f"{a.name} × {a.weight:g}" for a in bound)
    metadata = {
        "general.architecture": (model.architecture, gguf.STRING, None),
        "general.name": (name, gguf.STRING, None),
        "jmedlite.made.base": (model.label, gguf.STRING, None),
    }
    write_adapter(path, weights, files, metadata, GGMLQuantizationType[names[0]], check)
    files.close()
    return ExportedAdapter(
        path,
        path.stat().st_size,
        len(weights),
        (*(w for a in bound for w in a.warnings), *_left_out(model, bound)),
        {a.name: a.trained_on for a in bound if a.trained_on},
    )


def _left_out(model: SourceModel, adapters: Sequence[Adapter]) -> list[str]:
    """What the adapters' folders say of templates and special tokens, for which a GGUF adapter has no place."""
    brought = tokenizers(model, adapters)
    if not any(a.files.settings or a.files.template for a in brought):
        return []
    n_vocab = next(spec.shape[0] for spec in model.specs if spec.name == EMBEDDING)
    with_them, without = (model.metadata(None, 1, n_vocab, given)[0] for given in (brought, []))
    keys = sorted(key for key in {**with_them, **without} if with_them.get(key) != without.get(key))
    if not keys:
        return []
    names = " and ".join(a.name for a in brought)
    return [
        f"adapter {names}: brings its own {', '.join(keys)}, which a GGUF adapter can't hold; merge it with "
        "`jmedlite quantize --lora` to keep them"
    ]


def _reason(name: str, what: str) -> str:
    return f"adapter {name}: {what}, which llama.cpp can't do at run time; merge it with `jmedlite quantize --lora`"


def _impossible(weight: RuntimeWeight, what: str) -> DataError:
    return DataError(_reason(weight.updates[0][0].name, what))

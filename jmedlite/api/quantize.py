"""`quantize` for the command line and for Python: find the model, plan, run the pass, leave the manifests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jmedlite import __version__
from jmedlite.base.errors import IoFault, UsageError
from jmedlite.base.gguf import split_stem
from jmedlite.base.hub import DEFAULT_MODEL, Source, resolve, resolve_adapter
from jmedlite.base.imatrix import Imatrix, read_imatrix
from jmedlite.base.inputs import Watch, check_range, watching
from jmedlite.base.kept import Found, find, record_of, remove
from jmedlite.base.looking import exists, is_file
from jmedlite.base.manifest import MADE_MOMENTS
from jmedlite.base.moments import Moments
from jmedlite.base.options import parse_memory
from jmedlite.base.outputs import joint_sha256, sha256_file
from jmedlite.base.progress import Progress, silent
from jmedlite.base.publishing import CUT, Publication
from jmedlite.convert.adapter_export import ExportedAdapter, export
from jmedlite.convert.adapters.lora import parse_spec
from jmedlite.convert.adapters.peft import find_weights
from jmedlite.convert.encoding.encoders import GGML, MADE_WITH_ENCODER, Encoder, find_encoder
from jmedlite.convert.hashing import FollowingHash
from jmedlite.convert.levels.overrides import read_rules
from jmedlite.convert.levels.recipes import LEVELS, choose_types, parse_levels
from jmedlite.convert.manifest import versions, write_manifests
from jmedlite.convert.pipeline import Kept, Written, write
from jmedlite.convert.planning import QuantizePlan, assemble, check_targets, lay_out
from jmedlite.runtime.hardware import available_processors
from jmedlite.runtime.type_probe import EMBEDDING, OUTPUT, PATTERN, TypeRule

from .budgets import Mixed, Targets, mix_levels
from .made_models import MadeModel, remember_models

ROUNDINGS = ("ggml", "best")


def as_bytes(amount: str | int | None) -> int | None:
    """An amount of memory given as text or as a number of bytes."""
    return parse_memory(amount) if isinstance(amount, str) else amount


@dataclass(frozen=True)
class QuantizeJob:
    """A quantization, planned: what `run` will do, and what its manifest will say about where it comes from."""

    plan: QuantizePlan
    source: Source
    adapter_files: dict[Path, str]  # SHA-256 by path
    options: dict[str, Any]
    inputs: Watch  # the files that were read so far
    mixed: Mixed
    resumes: bool = False  # go on where a run was cut, and keep what is finished where this one is

    def run(
        self,
        *,
        threads: int | None = None,
        memory: int | None = None,
        progress: Progress = silent,
        remember: bool = True,
        notify: Callable[[str], object] = lambda text: None,
    ) -> list[Written]:
        """Run the pass, write the manifests, `remember` the models for `ask`; `notify` is told where that can't be."""
        if threads is not None:
            check_range("--threads", threads, 1, 256)
        plan = self.plan
        kept = Kept(self._digest(), notify) if self.resumes else None
        try:
            return self._run(threads or available_processors(), memory, progress, remember, notify, kept)
        except CUT:
            if kept and (found := self._kept()):
                n_done, n = len(found.tensors), len(plan.jobs)
                notify(f"{n_done:,} of {n:,} tensors are kept; the same command goes on from there")
            raise

    def _kept(self) -> Found | None:
        """What this run has finished, from which another may go on; nothing where what it was made of has changed."""
        first = self.plan.levels[0].path
        try:
            self.inputs.check()
        except IoFault:
            remove(record_of(first))
        return find(first)

    def _digest(self) -> str:
        """All that decides about the bytes: what was read, what goes into the headers, and who computes."""
        headers = [hashlib.sha256(f.header).hexdigest() for level in self.plan.levels for f in level.files]
        by = [self.plan.encoder.name, self.plan.encoder.versions, versions()]
        return hashlib.sha256(json.dumps([self.inputs.digest(), headers, by]).encode()).hexdigest()

    def _run(
        self,
        threads: int,
        memory: int | None,
        progress: Progress,
        remember: bool,
        notify: Callable[[str], object],
        kept: Kept | None,
    ) -> list[Written]:
        plan = self.plan
        with self.inputs.held(), Publication() as result, FollowingHash(plan.weight_files) as hashes:
            manifests = [result.add(level.manifest) for level in plan.levels]
            written = write(
                plan,
                result,
                threads=threads,
                memory=memory,
                progress=hashes.follow(progress),
                kept=kept,
            )
            source, base_files = self.source.describe(), hashes.result()
            write_manifests(
                manifests, plan, written, source, base_files, self.adapter_files, self.options, self.mixed.entries()
            )
            self.inputs.check()
            # llama.cpp opens a model by its first file, which is therefore the last to be there
            order = [
                path for p in plan.levels for path in (*(f.path for f in p.files[1:]), p.manifest, p.files[0].path)
            ]
            forgotten: list[str] = []
            result.publish(order, then=lambda: forgotten.append(_remember(written) if remember else ""))
            if kept:
                remove(record_of(plan.levels[0].path))
        for why in filter(None, forgotten):
            notify(f"(not remembered, so `ask` needs its name by -m: {why})")
        return written


def _remember(written: Sequence[Written]) -> str:
    return remember_models(
        MadeModel(
            path=str(w.path.resolve()),
            name=split_stem(w.path.name).removesuffix(f"-{w.level}"),
            level=w.level,
            bits_per_weight=w.bits_per_weight,
            sha256=joint_sha256([f.sha256 for f in w.files]),
        )
        for w in written
    )


def plan_quantization(
    model: str = DEFAULT_MODEL,
    *,
    lora: Sequence[str] = (),
    bits: Sequence[int] = (),
    types: Sequence[str] = (),
    targets: Targets | None = None,
    imatrix: Path | None = None,
    rounding: str | None = None,
    moments: Path | None = None,
    tensor_types: Sequence[str] = (),
    tensor_type_file: Path | None = None,
    token_embedding_type: str | None = None,
    output_type: str | None = None,
    out: Path = Path(),
    name: str | None = None,
    allow_requantize: bool = False,
    encoder: str = GGML.name,
    follow_links: bool = False,
    split_max_size: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> QuantizeJob:
    """Resolve the model and its adapters and check everything that can be known before the first byte.

    With `targets`, some rows of every weight are read and rounded to every type: `progress` hears of it.
    """
    targets = targets or Targets()
    targets.check()
    check_rounding(rounding, moments)
    asked_levels = bits or types or not targets.any
    levels = parse_levels(bits, types, has_imatrix=imatrix is not None) if asked_levels else []
    specs = [parse_spec(s) for s in lora]
    check_stem(name)
    by = find_encoder(encoder)
    with watching() as inputs:
        rules = read_rules(tensor_types, tensor_type_file, token_embedding_type, output_type)
        matrix = read_imatrix(imatrix) if imatrix else None
        gathered = Moments(moments) if moments else None
        source = resolve(model, follow_links=follow_links)
        adapters = [(resolve_adapter(spec, follow_links=follow_links), weight) for spec, weight in specs]
        weights = [adapter_weights(a.path) for a, _ in adapters]
        adapter_files = {path: sha256_file(path) for path in weights}
        stem = name or default_stem(source, [a for a, _ in adapters])
        if not dry_run:
            check_targets(out, stem, levels, overwrite, goes_on=resume)
        plan = assemble(
            source.path,
            name=source.name if source.repo else None,
            adapters=[(a.path, weight) for a, weight in adapters],
            imatrix=matrix,
            moments=gathered,
            made_from={
                **_made_from(source, adapters, [adapter_files[path] for path in weights], matrix, gathered, by),
                **{f"jmedlite.made.{name}": " ".join(values) for name, values in _asked_types(rules).items()},
            },
            requantize=allow_requantize,
            encoder=by,
        )
        chosen = choose_types(levels, plan.metadata, plan.stored_tensors, matrix, rules)
        mixed = (
            mix_levels(targets, plan, rules, threads=threads or available_processors(), progress=progress)
            if targets.any
            else Mixed()
        )
        plan = lay_out(
            plan,
            [*levels, *(m.level for m in mixed.mixes)],
            {**chosen.types, **{m.level.name: m.types for m in mixed.mixes}},
            out,
            stem=stem,
            own_metadata={m.level.name: {"jmedlite.made.mix": mixed.describe(m)} for m in mixed.mixes},
            split_bytes=split_max_size,
            overwrite=overwrite,
            goes_on=resume,
            dry_run=dry_run,
        )
        plan = replace(
            plan,
            warnings=(*plan.warnings, *chosen.warnings, *mixed.warnings),
            rules=tuple(zip(rules, chosen.n_decided, strict=False)),
        )
        for level in plan.levels:
            for target in (f.path for f in level.files):
                if any(exists(target) and target.samefile(f) for f in plan.weight_files):
                    raise UsageError(f"{target}: is the input itself; choose another --out or --name")
        options = {
            "allow_requantize": allow_requantize,
            "split_max_size": split_max_size,
            "adapters": [{**a.describe(), "weight": weight} for a, weight in adapters],
            **{k: values if k == "tensor_types" else values[0] for k, values in _asked_types(rules).items()},
        }
    return QuantizeJob(plan, source, adapter_files, options, inputs, mixed, resume)


def check_rounding(rounding: str | None, moments: Path | None) -> None:
    """Raise UsageError where `--rounding` and `--moments` do not go together."""
    if rounding not in (None, *ROUNDINGS):
        raise UsageError(f"--rounding {rounding}: expected {' or '.join(ROUNDINGS)}")
    if rounding == "best" and moments is None:
        raise UsageError(
            "--rounding best: needs the second moments of the model's inputs; gather them with `jmedlite moments GGUF` "
            "and give the file with --moments"
        )
    if moments is not None and rounding != "best":
        raise UsageError("--moments: is used by --rounding best; give that, too")


def export_adapters(
    model: str,
    lora: Sequence[str],
    *,
    types: Sequence[str] = (),
    out: Path = Path(),
    name: str | None = None,
    follow_links: bool = False,
    overwrite: bool = False,
) -> ExportedAdapter:
    """Write the adapters as one GGUF for use at run time, `STEM.gguf`, with the adapters' names as the stem."""
    check_stem(name)
    specs = [parse_spec(s) for s in lora]
    with watching() as inputs:
        source = resolve(model, follow_links=follow_links)
        adapters = [(resolve_adapter(spec, follow_links=follow_links), weight) for spec, weight in specs]
        path = out / f"{name or '-'.join(a.name for a, _ in adapters)}.gguf"
        if any(is_file(a.path) and exists(path) and path.samefile(a.path) for a, _ in adapters):
            raise UsageError(f"{path}: is the input itself; choose another --out or --name")
        given = [(a.path, weight) for a, weight in adapters]
        return export(source.path, given, path, types=types, overwrite=overwrite, check=inputs.check)


def check_stem(name: str | None) -> None:
    """Raise UsageError where a file name's beginning is none."""
    if name is not None and (not name.strip() or Path(name).name != name or "\\" in name):
        raise UsageError(f"--name {name!r}: expected a plain file name without folders")


def default_stem(source: Source, adapters: Sequence[Source]) -> str:
    """The beginning of file names where none is given: the model's name, without a GGUF's level, and the adapters'."""
    name = source.name
    if is_file(source.path):
        name = re.sub(rf"[-.]({'|'.join(LEVELS)})$", "", name, flags=re.IGNORECASE) or name
    return "-".join([name, *(a.name for a in adapters)]) or "model"


def adapter_weights(path: Path) -> Path:
    """The file an adapter's matrices are in: a GGUF itself, or a PEFT folder's."""
    return path if is_file(path) else find_weights(path)


def _made_from(
    source: Source,
    adapters: Sequence[tuple[Source, float]],
    sums: Sequence[str],
    imatrix: Imatrix | None,
    moments: Moments | None,
    encoder: Encoder,
) -> dict[str, str]:
    """The essential part of the manifest, for the GGUF's own metadata."""
    found = {"jmedlite.made.version": __version__, "jmedlite.made.base": source.full_name}
    if adapters:
        found["jmedlite.made.adapters"] = "; ".join(
            f"{a.full_name} × {weight:g}, SHA-256 {sha256}" for (a, weight), sha256 in zip(adapters, sums, strict=True)
        )
    if imatrix:
        found["jmedlite.made.imatrix"] = f"{imatrix.path.name}, SHA-256 {imatrix.sha256}"
    if moments:
        found[MADE_MOMENTS] = f"{moments.path.name}, SHA-256 {moments.sha256}"
    if encoder is not GGML:
        found[MADE_WITH_ENCODER] = encoder.name
    return found


def _asked_types(rules: Sequence[TypeRule]) -> dict[str, list[str]]:
    """The types set for single tensors, by the names that the options have here; no name without a value."""
    names = {PATTERN: "tensor_types", EMBEDDING: "token_embedding_type", OUTPUT: "output_type"}
    found = {name: [rule.value for rule in rules if rule.option == option] for option, name in names.items()}
    return {name: values for name, values in found.items() if values}


def quantize(
    model: str | Path = DEFAULT_MODEL,
    *,
    lora: Sequence[str] = (),
    bits: Sequence[int] = (),
    types: Sequence[str] = (),
    target_bpw: Sequence[float] = (),
    target_size: Sequence[str] = (),
    fit_ram: Sequence[str] = (),
    fit_ctx: int | None = None,
    sensitivity: str | Path | None = None,
    imatrix: str | Path | None = None,
    rounding: str | None = None,
    moments: str | Path | None = None,
    tensor_types: Sequence[str] = (),
    tensor_type_file: str | Path | None = None,
    token_embedding_type: str | None = None,
    output_type: str | None = None,
    out: str | Path = ".",
    name: str | None = None,
    threads: int | None = None,
    memory: str | int | None = None,
    allow_requantize: bool = False,
    encoder: str = GGML.name,
    follow_links: bool = False,
    split_max_size: str | int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> list[Path]:
    """Merge `lora` adapters into `model` and write one GGUF per level, in one pass; returns the files' paths.

    `model` is a checkpoint folder, a GGUF file or a Hub id; `bits` are 2, 3, 4, 5, 6, 8 or 16, `types` llama.cpp's
    names ("Q4_K_S"); `target_bpw`, `target_size` ("4.7GB") and `fit_ram` ("8GB", with a context of `fit_ctx` tokens)
    are mixes of types, each a level, chosen by what `sensitivity` measured; `rounding="best"` takes `moments`;
    `encoder` "fast" takes a fraction of ggml's time;
    `tensor_types` are REGEX=TYPE ("attn_v=Q6_K"; the first that matches decides), `tensor_type_file` has more of them,
    `token_embedding_type` and `output_type` are of these two tensors (docs/converting.md); `memory` bounds the pass
    ("1GB"), `split_max_size` each file ("2GB": the first file's path is
    returned); with `resume`, a run that is cut keeps what it has finished, and the same call goes on from there; with
    `follow_links`, links in folders may lead to other users' files; `progress` hears how far it is
    (docs/python.md). Raises the exceptions of `jmedlite.base.errors`.

        >>> jmedlite.quantize("models/qwen", bits=[8, 4], out="gguf")  # doctest: +SKIP
        [PosixPath('gguf/qwen-Q8_0.gguf'), PosixPath('gguf/qwen-Q4_K_M.gguf')]
    """
    job = plan_quantization(
        str(model),
        lora=lora,
        bits=bits,
        types=types,
        targets=Targets(target_bpw, target_size, fit_ram, fit_ctx, Path(sensitivity) if sensitivity else None),
        imatrix=Path(imatrix) if imatrix else None,
        rounding=rounding,
        moments=Path(moments) if moments else None,
        tensor_types=tensor_types,
        tensor_type_file=Path(tensor_type_file) if tensor_type_file else None,
        token_embedding_type=token_embedding_type,
        output_type=output_type,
        out=Path(out),
        name=name,
        allow_requantize=allow_requantize,
        encoder=encoder,
        follow_links=follow_links,
        split_max_size=as_bytes(split_max_size),
        overwrite=overwrite,
        resume=resume,
        threads=threads,
        progress=progress,
    )
    return [w.path for w in job.run(threads=threads, memory=as_bytes(memory), progress=progress)]

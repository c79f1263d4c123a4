"""What runs inside a Dask worker: one model, held from shard to shard, and the packs of a run through it."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
import os
import subprocess
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError, InputMissing, Interrupted, NativeError, as_expected
from jmedlite.base.inputs import reading
from jmedlite.base.looking import is_file
from jmedlite.base.outputs import sha256_file
from jmedlite.runtime.process import child_command

from .base import Loading, LocalModel, Prepared, RawAnswer, Wanted

MODELS = "JMEDLITE_MODELS"  # a worker's own folder of models
# what the last digits of a score depend on, besides the file and how it is loaded
PACKAGES = ("jmedlite", "llama-cpp-python")
NAMES = {"cpu_features": "processor features", "gpus": "GPUs", "n_gpu_layers": "layers on a GPU"}


@dataclass(frozen=True)
class Sealed:
    """Prompts on their way. Their `repr` tells nothing: Dask logs the arguments of calls that fail."""

    raw: bytes = field(repr=False)

    @classmethod
    def of(cls, wanted: Wanted) -> Sealed:
        """What a run asks, compressed."""
        return cls(zlib.compress(json.dumps(vars(wanted), ensure_ascii=False).encode(), 6))

    def open(self) -> Wanted:
        """What was put in."""
        found = json.loads(zlib.decompress(self.raw))
        return Wanted(**{**found, "prompts": tuple(found["prompts"])})

    @property
    def digest(self) -> str:
        """The same for the same content."""
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True)
class ClusterJob:
    """Which model a run wants, and how it is loaded. `files` are (name, SHA-256), the first one's path is `path`."""

    run: str
    path: str
    files: tuple[tuple[str, str], ...]
    loading: Loading


@dataclass(frozen=True)
class Fault:
    """An expected fault as a value: Dask would try again, and log, what is raised."""

    code: int
    message: str


@dataclass(frozen=True)
class Seen:
    """A worker's `facts`, which all workers must share, and what was heard while the model was loaded."""

    facts: dict[str, Any]
    events: tuple[dict[str, Any], ...]


def package_versions() -> dict[str, str]:
    """The versions here of what computes."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def machine_differences(mine: dict[str, Any], others: dict[str, Any]) -> Iterable[str]:
    """What `mine` has other than `others`, in words."""
    for key, theirs in others.items():
        have = mine.get(key)
        if have == theirs:
            continue
        if isinstance(have, list) and isinstance(theirs, list):
            lacks, more = ([str(x) for x in a if x not in b] for a, b in ((theirs, have), (have, theirs)))
            parts = [f"lacks {', '.join(lacks)}"] * bool(lacks) + [f"has {', '.join(more)} besides"] * bool(more)
            yield f"{NAMES.get(key, key)}: {' and '.join(parts) or 'another number of them'}"
        else:
            yield f"{NAMES.get(key, key)} {have}, not {theirs}"


class Holder:
    """The one model of this process. All of it runs in one thread, whose end would end the child on Linux."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="jmedlite")
        self.released: set[str] = set()
        self.run = ""
        self._model: LocalModel | None = None
        self._held: tuple[Any, ...] = ()
        self._prepared: tuple[str, Prepared] | None = None
        self._seen = Seen({}, ())
        self._machine: dict[str, Any] = {}
        self._hashes: dict[tuple[str, int, int], str] = {}

    def look(self, job: ClusterJob, like: dict[str, Any]) -> Seen:
        """Load the model, unless it is held; what this worker is. DataError where it is not `like` the others."""
        held = (job.path, job.files, job.loading)
        if self._model is None or self._held != held:
            self._close()
            self._refuse_others(self._facts(), {k: v for k, v in like.items() if k != "n_gpu_layers"})
            path = self._find(job)
            events: list[dict[str, Any]] = []
            self._model = LocalModel(path, job.loading, events.append)
            self._held = held
            placed = next((e["n_gpu_layers"] for e in events if e["event"] == "loaded"), None)
            self._seen = Seen({**self._facts(), "n_gpu_layers": placed}, tuple(events))
        self._refuse_others(self._seen.facts, like)
        return self._seen

    def prepare(self, job: ClusterJob, like: dict[str, Any], wanted: Sealed) -> Prepared:
        """Tokens and packs of these prompts, unless they are those prepared last."""
        self.look(job, like)
        assert self._model is not None
        if self._prepared is None or self._prepared[0] != wanted.digest:
            self._prepared = None
            self._prepared = wanted.digest, self._model.prepare(wanted.open())
        return self._prepared[1]

    def shard(
        self, job: ClusterJob, like: dict[str, Any], wanted: Sealed, first: int, stop: int
    ) -> list[tuple[int, list[RawAnswer]]]:
        """Packs `first` to before `stop`."""
        self.prepare(job, like, wanted)
        assert self._model is not None
        return list(self._model.run(first, stop))

    def guarded(self, work: Callable[..., Any], job: ClusterJob, *args: Any) -> Any:
        """What `work` gives, or a Fault. A child that died is started again, once: somebody may have killed it."""
        for again in (True, False):
            if job.run in self.released:
                return Fault(Interrupted.exit_code, "the run was ended")
            self.run = job.run
            try:
                return work(job, *args)
            except Exception as e:  # what nobody expected is told as well, and not raised through Dask
                self._close()  # a child ends with the fault it told
                fault = as_expected(e)
                if not again or not isinstance(fault, NativeError):
                    return Fault(fault.exit_code, str(fault))
        raise AssertionError("not reached")

    def release(self, run: str) -> None:
        """End what is done for a run, and free its model; called from another thread than the rest."""
        self.released.add(run)
        model = self._model
        if self.run == run and model is not None:
            model.child.process.kill()
            self.thread.submit(self._close_if_of, run)

    def _close_if_of(self, run: str) -> None:
        if self.run == run:
            self._close()

    def _close(self) -> None:
        model, self._model, self._prepared = self._model, None, None
        if model is not None:
            model.child.close()

    # ------------------------------------------------------------------------------------------------- checks

    def _facts(self) -> dict[str, Any]:
        if not self._machine:
            # in a process of its own: libraries for GPUs would keep memory here
            command = child_command("jmedlite.runtime.hardware")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise NativeError(f"llama.cpp does not start there (status {done.returncode}); reinstall jmedlite")
            self._machine = json.loads(done.stdout.splitlines()[-1])
        machine = self._machine
        gpus = [gpu["description"] for gpu in machine["gpus"]]
        return {**package_versions(), "cpu_features": machine["cpu_features"], "gpus": gpus}

    @staticmethod
    def _refuse_others(mine: dict[str, Any], like: dict[str, Any]) -> None:
        if found := list(machine_differences(mine, like)):
            raise DataError(
                f"is not like the others ({'; '.join(found)}), so its last digits would differ; take it out of the "
                "cluster, or install the same there"
            )

    def _find(self, job: ClusterJob) -> Path:
        """The model's first file here, checked to be the parent's."""
        name = job.files[0][0]
        places = [Path(job.path)]
        if folder := os.environ.get(MODELS):
            places.insert(0, Path(folder) / name)
        path = next((p for p in places if is_file(p)), None)
        if path is None:
            raise InputMissing(
                f"has no {' or '.join(map(str, places))}; copy the model there, or set {MODELS} there to its folder"
            )
        for name, sha256 in job.files:
            if (found := self._sha256(path.with_name(name))) != sha256:
                raise DataError(
                    f"{path.with_name(name)} there is another file than here (SHA-256 {found[:12]}…, not "
                    f"{sha256[:12]}…); copy this machine's there"
                )
        return path

    def _sha256(self, path: Path) -> str:
        with reading(path):
            status = path.stat()
            key = (str(path), status.st_size, status.st_mtime_ns)
            if key not in self._hashes:
                self._hashes[key] = sha256_file(path)
        return self._hashes[key]


HOLDER = Holder()


async def look(job: ClusterJob, like: dict[str, Any]) -> Seen | Fault:
    """`Holder.look` beside the worker's own loop."""
    return await asyncio.wrap_future(HOLDER.thread.submit(HOLDER.guarded, HOLDER.look, job, like))


async def prepare(job: ClusterJob, like: dict[str, Any], wanted: Sealed) -> Prepared | Fault:
    """`Holder.prepare` beside the worker's own loop."""
    return await asyncio.wrap_future(HOLDER.thread.submit(HOLDER.guarded, HOLDER.prepare, job, like, wanted))


async def release(run: str) -> None:
    """`Holder.release`, at once."""
    HOLDER.release(run)


def hold(wanted: Sealed) -> Sealed:
    """The prompts as a task's result, which Dask computes again where the only worker that had it is gone."""
    return wanted


def shard(
    job: ClusterJob, like: dict[str, Any], wanted: Sealed, first: int, stop: int
) -> tuple[str, list[tuple[int, list[RawAnswer]]] | Fault]:
    """(the worker's address, `Holder.shard`), as a task."""
    from distributed import get_worker

    found = HOLDER.thread.submit(HOLDER.guarded, HOLDER.shard, job, like, wanted, first, stop).result()
    return get_worker().address, found

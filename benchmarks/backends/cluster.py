"""Cluster (`--cluster`): one model on many machines, as shards of packs for Dask's workers (cluster_worker.py)."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from jmedlite.base.errors import BY_EXIT_CODE, DataError, JmedliteError, NativeError, Unavailable, UsageError
from jmedlite.base.gguf import split_files
from jmedlite.base.outputs import sha256_file

from . import cluster_worker as clusterworker
from .base import Loading, Prepared, RawAnswer, Wanted
from .cluster_worker import ClusterJob, Fault, Sealed

PACKS = 8  # of a shard at most: what is done again where a worker dies
AT_ONCE = 2  # shards that a worker has: one that it works on, one that waits for it
AHEAD = 4  # shards per worker that are done or handed out while an earlier one is missing
TRIES = 3  # of a shard that fails for no reason known here
# how Dask says that the other side lacks this package, or has another version of it
MISSING = ("ModuleNotFoundError", "ImportError", "AttributeError", "deserialization of the task graph")


def _distributed() -> Any:
    """The library, quiet: what it would log here is told as an error, or nothing to the reader."""
    try:
        import dask

        dask.config.set(
            {
                "logging": {"distributed": "critical", "distributed.client": "critical"},
                "distributed.admin.large-graph-warning-threshold": "1 GiB",
            }
        )
        import distributed
    except ImportError:
        raise UsageError('--cluster needs Dask; `pip install "jmedlite[cluster]"` here and on the workers') from None
    return distributed


@dataclass(frozen=True)
class Shard:
    """Packs handed out; `worker` is whom they were meant for."""

    future: Any
    worker: str


class ClusterModel:
    """A GGUF file on the workers of a Dask cluster; the same answers, to the last bit, as `LocalModel` on one of them.

    `sha256` is of the file at `path`. `told` hears what each worker says while it loads, with its address as `worker`.
    Raises Unavailable where nobody answers at `address`, or no worker joins within `patience` seconds; DataError where
    a worker has another file, other versions or another processor than the first; UsageError without the extra.
    """

    def __init__(
        self,
        path: Path,
        loading: Loading,
        sha256: str,
        address: str,
        told: Callable[[dict[str, Any]], None] | None = None,
        patience: float = 30.0,
    ) -> None:
        self.address, self.patience = address, patience
        self._library = _distributed()
        parts = split_files(path)
        files = tuple((p.name, sha256 if p.name == path.name else sha256_file(p)) for p in parts)
        self._job = ClusterJob(uuid.uuid4().hex, str(parts[0].resolve()), files, loading)
        self._like: dict[str, Any] = dict(clusterworker.package_versions())
        self._wanted: Any = None
        self._client = self._connect()
        try:
            self._wait_for_one()
            self._load(told)
        except BaseException:
            self._leave()
            raise

    def describe(self) -> dict[str, Any]:
        """What all workers have in common, and the results depend on: part of a run's identity."""
        return dict(self._like)

    # -------------------------------------------------------------------------------------------- the cluster

    def _connect(self) -> Any:
        if not self.address.startswith(("tcp://", "tls://", "ucx://", "ws://", "wss://")):
            raise UsageError(f"--cluster {self.address}: give the scheduler's address, such as tcp://192.168.0.2:8786")
        try:
            # first by hand: a Client waits for ever where something else than a scheduler listens
            asyncio.run(self._greet())
            return self._library.Client(self.address, timeout=self.patience, set_as_default=False)
        except (OSError, TimeoutError) as e:
            why = str(e.__cause__ or e).rpartition("Error: ")[2].strip() or "it does not speak Dask's language"
            raise Unavailable(
                f"no Dask scheduler answers at {self.address} ({why}); start one with `dask scheduler`"
            ) from None
        except TypeError:
            raise UsageError(
                f"--cluster {self.address}: needs certificates; name them in Dask's configuration "
                "(distributed.comm.tls, docs/elsewhere.md)"
            ) from None
        except (ValueError, RuntimeError) as e:
            raise UsageError(f"--cluster {self.address}: is not an address that Dask can use ({e})") from None

    async def _greet(self) -> None:
        """Ask whoever listens what it is."""
        from distributed.comm import connect

        async def ask() -> Any:
            security = self._library.Security().get_connection_args("client")
            comm = await connect(self.address, timeout=self.patience, **security)
            await comm.write({"op": "identity", "reply": True})
            found = await comm.read()
            await comm.close()
            return found

        found = await asyncio.wait_for(ask(), self.patience + 1)
        if not isinstance(found, dict) or found.get("type") != "Scheduler":
            raise OSError("that is a worker's address")

    def _workers(self) -> list[str]:
        if self._client.status != "running":
            raise self._lost()
        try:
            return sorted(self._client.nthreads())
        except (OSError, TimeoutError):
            raise self._lost() from None

    def _lost(self) -> Unavailable:
        return Unavailable(
            f"the Dask scheduler at {self.address} is gone; start it again, and run again: what is done is kept"
        )

    def _wait_for_one(self) -> None:
        deadline = time.monotonic() + self.patience
        while not self._workers():
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"no worker has joined {self.address} within {self.patience:g} s; start one with "
                    f"`dask worker {self.address} --nthreads 1`"
                )
            time.sleep(0.1)

    def _load(self, told: Callable[[dict[str, Any]], None] | None) -> None:
        seen = self._everywhere(clusterworker.look)
        first = next(iter(seen))
        self._like = seen[first].facts
        for address, one in seen.items():
            if found := list(clusterworker.machine_differences(one.facts, self._like)):
                raise DataError(
                    f"{address}: is not like {first} ({'; '.join(found)}), so its last digits would differ; take one "
                    "of them out of the cluster, or install the same there"
                )
            for event in one.events if told else ():
                told({**event, "worker": address})  # type: ignore[misc]

    def _everywhere(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """What each worker gives, by address; those that die meanwhile are left out."""
        for _ in range(TRIES):
            found = self._client.run(function, self._job, self._like, *args, on_error="return")
            values = {a: self._value(a, v) for a, v in sorted(found.items()) if not isinstance(v, OSError)}
            if values:
                return values
            self._wait_for_one()
        raise Unavailable(f"the workers at {self.address} die as soon as they are asked; see their logs")

    @staticmethod
    def _value(address: str, value: Any) -> Any:
        """What a worker gave; its fault, and its address, as an exception."""
        if isinstance(value, Fault):
            raise BY_EXIT_CODE.get(value.code, JmedliteError)(f"{address}: {value.message}")
        if isinstance(value, Exception):
            if any(name in repr(value) for name in MISSING):
                raise DataError(f"{address}: can't run this version of jmedlite ({value}); install the same there")
            raise value
        return value

    # ------------------------------------------------------------------------------------------------ answers

    def prepare(self, wanted: Wanted) -> Prepared:
        sealed = Sealed.of(wanted)
        prepared = self._everywhere(clusterworker.prepare, sealed)
        first, *others = prepared
        for address in others:
            if prepared[address] != prepared[first]:
                raise DataError(f"{address}: packs the questions in another way than {first}; install the same there")
        key = f"jmedlite-prompts-{self._job.run}-{sealed.digest}"
        self._wanted = self._client.submit(clusterworker.hold, sealed, key=key, retries=TRIES)
        found: Prepared = prepared[first]
        return found

    def run(self, first: int, stop: int) -> Iterator[tuple[int, list[RawAnswer]]]:
        n_packs = max(1, min(PACKS, (stop - first) // (AHEAD * max(1, len(self._workers())))))
        todo = deque((at, min(at + n_packs, stop)) for at in range(first, stop, n_packs))
        waiting: deque[Shard] = deque()
        try:
            while todo or waiting:
                self._hand_out(todo, waiting)
                if waiting and waiting[0].future.done():
                    yield from self._results(waiting.popleft())
                else:
                    self._wait([s.future for s in waiting if not s.future.done()])
        finally:
            with suppress(Exception):  # the connection may be closed already
                self._client.cancel([s.future for s in waiting])

    def _hand_out(self, todo: deque[tuple[int, int]], waiting: deque[Shard]) -> None:
        """Give each worker what it can have. Dask itself would fill a worker of many threads, and starve the others.

        The worker is a wish only: where it dies, Dask gives its shards to another.
        """
        workers = self._workers()
        busy = Counter(s.worker for s in waiting if not s.future.done())
        while todo and workers and len(waiting) < AHEAD * len(workers):
            worker = min(workers, key=lambda w: busy[w])
            if busy[worker] >= AT_ONCE:
                return
            first, stop = todo.popleft()
            future = self._client.submit(
                clusterworker.shard,
                self._job,
                self._like,
                self._wanted,
                first,
                stop,
                key=f"jmedlite-{uuid.uuid4().hex}-{first}-{stop}",
                workers=[worker],
                allow_other_workers=True,
                retries=TRIES,
            )
            waiting.append(Shard(future, worker))
            busy[worker] += 1

    def _wait(self, futures: Sequence[Any]) -> None:
        """Until one is done, or a second has passed."""
        if not self._workers():
            self._wait_for_one()
        try:
            with self._client.as_current():
                self._library.wait(futures, timeout=1, return_when="FIRST_COMPLETED")
        except TimeoutError:
            return
        except self._library.CancelledError:
            raise self._lost() from None

    def _results(self, shard: Shard) -> list[tuple[int, list[RawAnswer]]]:
        try:
            address, found = self._result(shard.future)
        except self._library.KilledWorker as e:
            raise NativeError(
                f"the workers die over the same questions ({e.last_worker.address} last); see their logs, it may be "
                "that memory runs out"
            ) from None
        except (self._library.CancelledError, OSError, TimeoutError):
            raise self._lost() from None
        except Exception as e:
            if not any(name in repr(e) for name in MISSING):
                raise
            raise DataError(
                f"{self.address}: the scheduler or a worker can't run this version of jmedlite; install the same on all"
            ) from None
        answers: list[tuple[int, list[RawAnswer]]] = self._value(address, found)
        return answers

    def _result(self, future: Any) -> tuple[str, Any]:
        """What a shard gave. Its worker may leave before it is fetched: then another has to answer it anew."""
        while True:
            try:
                found: tuple[str, Any] = future.result(timeout=1)
                return found
            except TimeoutError:
                if not self._workers():
                    self._wait_for_one()

    # --------------------------------------------------------------------------------------------------- end

    def _leave(self) -> None:
        """Free the models of this run, whatever the workers are doing, and go."""
        with suppress(Exception):  # nobody may be there any more; the workers' next run then replaces the model
            if self._client.status == "running":
                self._client.run(clusterworker.release, self._job.run, wait=False, on_error="ignore")
        with suppress(Exception):
            self._client.close(timeout=5)

    def __enter__(self) -> ClusterModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

"""Participants of a run: GGUF files here, the same files on a cluster's workers, or models behind a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import UsageError
from jmedlite.base.gguf import read_header
from jmedlite.base.progress import Notice, Progress, silent
from jmedlite.benchmarks.backends.base import Loading, LocalModel
from jmedlite.benchmarks.backends.local_group import LocalGroup
from jmedlite.benchmarks.run.run import Participant
from jmedlite.runtime.shape import check_kv_type

from .model_facts import describe_model, find_models


@dataclass(frozen=True)
class Participants:
    """The models of a run, the files of those that have one here, and what a cluster's workers have in common."""

    models: tuple[Participant, ...]
    files: Mapping[str, Path]
    workers: dict[str, Any] | None = None

    def first(self, name: str) -> Participants:
        """The same with one of them first."""
        ordered = tuple(sorted(self.models, key=lambda m: m.name != name))
        return Participants(ordered, self.files, self.workers)

    def reference(self, name: str | None) -> str:
        """The model that the others are compared with: the one that is named, else the widest."""
        if name is None:
            return max(self.models, key=lambda model: model.facts["bits_per_weight"] or 0).name
        if name not in (names := [model.name for model in self.models]):
            raise UsageError(f"--reference {name}: expected one of {', '.join(names)}")
        return name


def files_here(named: Sequence[str | Path], loading: Loading, progress: Progress, processes: int = 1) -> Participants:
    """GGUF files, each in one or more child processes of this machine."""
    paths = find_models(named)
    for path in paths.values() if loading.kv_type != Loading.kv_type else ():  # before the first is read through
        check_kv_type(path.name, read_header(path).metadata, loading.kv_type)

    def opening(path: Path) -> Callable[[], LocalModel | LocalGroup]:
        return lambda: LocalModel(path, loading) if processes == 1 else LocalGroup(path, loading, processes)

    models = [Participant(name, describe_model(p, progress, name), opening(p)) for name, p in paths.items()]
    return Participants(tuple(models), paths)


def files_on_a_cluster(named: Sequence[str | Path], loading: Loading, address: str, progress: Progress) -> Participants:
    """GGUF files that a Dask cluster's workers have too."""
    from jmedlite.benchmarks.backends.cluster import ClusterModel

    here = files_here(named, loading, progress)

    def opening(model: Participant) -> Callable[[], ClusterModel]:
        path, sha256 = here.files[model.name], model.facts["sha256"]
        return lambda: ClusterModel(path, loading, sha256, address)

    models = [Participant(m.name, m.facts, opening(m)) for m in here.models]
    with opening(models[0])() as first:
        workers = first.describe()
    return Participants(tuple(models), here.files, workers)


def behind_a_server(
    ids: Sequence[str | Path], url: str, notice: Notice, timeout: float, concurrency: int
) -> Participants:
    """Models of an OpenAI-compatible server by their ids there; the only one where none is named."""
    from jmedlite.benchmarks.backends.endpoint import EndpointModel

    def opening(name: str | None) -> Callable[[], EndpointModel]:
        return lambda: EndpointModel(url, name, None, timeout, concurrency)

    models: list[Participant] = []
    names: list[str | None] = [str(i) for i in ids]
    for name in names or [None]:
        with EndpointModel(url, name, None, timeout, concurrency, silent if models else notice) as model:
            facts = model.describe()
        if twin := next((m for m in models if m.name == facts["name"]), None):
            raise UsageError(
                f"{twin.facts['title']} and {facts['title']} would both be called {facts['name']}; ask each in a run "
                "of its own, `jmedlite report` takes several"
            )
        facts |= {"base": facts["base"] or facts["name"], "adapters": facts["adapters"] or []}
        models.append(Participant(facts["name"], facts, opening(name)))
    return Participants(tuple(models), {})

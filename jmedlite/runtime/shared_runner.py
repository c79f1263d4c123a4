"""Shared runner: a GGUF model that answers many at once, in a child process; what `jmedlite serve` stands on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jmedlite.base.errors import JmedliteError

from .load_options import LoadOptions
from .offload import n_sequences
from .process import SharedChild
from .runner import ADVICE, load_model, load_request
from .shape import N_OUTPUTS

Event = dict[str, Any]
AGAIN = 30.0  # seconds: a model that ends its process sooner after its start is not started again


class SharedRunner:
    """A loaded model for `lanes` answers at once; use it as a context manager.

    `facts` describes it and `plan` how it was loaded, as of a `Runner`. Where the process dies (a native fault, memory
    that ran out), those who wait are told, and the next request starts it anew.
    """

    def __init__(
        self,
        model: str | Path,
        options: LoadOptions,
        *,
        lanes: int,
        on_plan: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.lanes = Path(model), lanes
        self._load = {**load_request(self.path, options), "lanes": lanes, "n_outputs": n_sequences(lanes) + N_OUTPUTS}
        self._lock = threading.Lock()
        self._started = 0.0
        self._child = self._start(on_plan)

    def _start(self, on_plan: Callable[[str], None] | None = None) -> SharedChild:
        child = SharedChild("jmedlite.runtime.serving_worker", ADVICE)
        try:
            self.plan, self.facts = load_model(child, self._load, on_plan)
        except BaseException:
            child.close()
            raise
        child.listen()
        self._started = time.monotonic()
        return child

    def submit(self, request: dict[str, Any], on_event: Callable[[Event], None]) -> Callable[[], None]:
        """Send an `ask` or a `complete`; its events come in another thread, the last one is `end` or `error`.

        Returns what ends it early. Raises what the process died of, where it is not to be started again yet.
        """
        with self._lock:
            if fault := self.fault:
                raise fault
            if self._child.dead is not None:
                self._child.close()
                self._child = self._start()
            child = self._child
        request_id = child.submit(request, on_event, "end")
        return lambda: child.cancel(request_id)

    @property
    def fault(self) -> JmedliteError | None:
        """Why nothing can be asked now, where that is so."""
        is_early = time.monotonic() - self._started < AGAIN
        return self._child.dead if is_early else None

    def close(self) -> None:
        """End the child and free the model."""
        self._child.close()

    def __enter__(self) -> SharedRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

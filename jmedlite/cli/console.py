"""The only place that prints: progress on a terminal, plain lines in a pipe, errors as one line.

What is ours is said in the person's language here, and nowhere else; documents, answers and files stay as they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from jmedlite.base.errors import ClosedPipe, shortened
from jmedlite.base.language import localized
from jmedlite.base.progress import IN_BYTES, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jmedlite.base.progress import Progress, Stage

LABELS: dict[Stage, str] = {
    "quantizing": "quantizing",
    "verifying": "verifying",
    "mixing": "trying types",
    "calibrating": "calibrating",
    "moments": "gathering moments",
    "weights": "measuring weights",
    "hashing": "checking the files",
    "copying": "copying",
    "questions": "asking",
    "measuring": "measuring",
    "text": "reading",
}


def size(n_bytes: float) -> str:
    """Decimal units, as disks and model pages have them."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} GB"


# What steers a terminal, or turns the direction of writing, is shown and not sent: file names, a model's name and its
# answers, and what servers say come from outside. Carriage returns are part of Windows' line ends.
_CONTROLS: dict[int, int | None] = {
    **{c: 0x2400 + c for c in range(0x20) if chr(c) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
    ord("\r"): None,
}
_DIM, _AS_BEFORE = "\x1b[2m", "\x1b[22m"
_UNESCAPED = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # which JSON lets stand as they are
_OPENING = frozenset("「『（【〈《〔［｛(")
_CLOSING = frozenset("、。，．・：；？！」』）】〉》〕］｝ー…ぁぃぅぇぉっゃゅょァィゥェォッャュョ,.:;?!)]}%")


def plain(text: str) -> str:
    """Text without control sequences, nor halves of characters, as file names in other encodings have them."""
    return text.translate(_CONTROLS).encode("utf-8", "replace").decode("utf-8")


def out(text: str, end: str = "\n") -> None:
    """Text on standard output, at once; raises ClosedPipe where nobody reads it any more."""
    with _pipe():
        print(plain(text), end=end, flush=True)


def say(text: str) -> None:
    """A line of ours on standard output."""
    out(localized(text))


def _dim(text: str, end: str = "\n") -> None:
    shown = f"{_DIM}{plain(text)}{_AS_BEFORE}" if text else ""
    print(shown, end=end, file=sys.stderr, flush=True)


class Stream:
    """An answer that arrives in pieces, on standard output; on a terminal its lines end between words.

    The last word is held back until it is known where it ends; `end` shows it, and ends the line.
    """

    def __init__(self, show: Callable[..., None] = out, *, on_terminal: bool | None = None) -> None:
        from rich.cells import cell_len

        self._cells, self._show = cell_len, show
        on_terminal = sys.stdout.isatty() if on_terminal is None else on_terminal
        self._width = shutil.get_terminal_size().columns if on_terminal else 0
        self._column, self._word = 0, ""

    def write(self, piece: str) -> None:
        """The next piece."""
        if not self._width:
            self._show(piece, end="")
            return
        self._show("".join(map(self._take, plain(piece))), end="")

    def end(self) -> None:
        """What is left, and a line end."""
        self._show(self._flush())

    def _take(self, c: str) -> str:
        if c.isspace():
            told = self._flush()
            if c == "\n" or self._column + 1 >= self._width:
                self._column = 0
                return told + "\n"
            self._column += 1
            return told + " "
        # Japanese has no spaces: a line may end before any wide character that does not close something
        may_end = c not in _CLOSING and self._word[-1:] not in _OPENING
        told = self._flush() if self._cells(c) == 2 and may_end else ""
        if self._word and may_end and self._cells(self._word[-1]) == 2 and self._cells(c) == 1:
            told = self._flush()
        self._word += c
        return told

    def _flush(self) -> str:
        word, self._word = self._word, ""
        width = self._cells(word)
        begins = "\n" if self._column and self._column + width > self._width else ""
        total = (0 if begins else self._column) + width
        self._column = (total - 1) % self._width + 1 if total > self._width else total  # too long a word is cut
        return begins + word


class Talk:
    """What a model says, piece by piece: the answer on standard output, a thought before it on standard error, dimmed.

    The thought is for a person: it is shown where both are a terminal. With `hide`, and where a terminal can't dim, a
    word says that there is one.
    """

    def __init__(self, *, hide: bool = False) -> None:
        self._watched = sys.stdout.isatty() and sys.stderr.isatty()
        self._hide, self._answer = hide or os.environ.get("TERM") == "dumb", Stream()
        self._thought: Stream | None = None

    def think(self, piece: str) -> None:
        """The next piece of the thought."""
        if self._watched and self._thought is None:
            self._thought = Stream(_dim, on_terminal=True)
            if self._hide:
                self._thought.write(localized("(thinking …)"))
        if self._thought and not self._hide:
            self._thought.write(piece)

    def write(self, piece: str) -> None:
        """The next piece of the answer."""
        self._end_thought()
        self._answer.write(piece)

    def end(self) -> None:
        """Nothing more comes."""
        self._end_thought()
        self._answer.end()

    def _end_thought(self) -> None:
        if self._thought:
            self._thought.end()
            self._thought, self._watched = None, False  # one thought an answer


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many cells."""
    pieces: list[str] = []
    stream = Stream(lambda piece, end="": pieces.append(piece), on_terminal=True)
    stream._width = width
    stream.write(text)
    stream.end()
    return "".join(pieces).splitlines()


@contextmanager
def _pipe() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # point the descriptor elsewhere, or the interpreter complains when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ClosedPipe from None


def note(text: str) -> None:
    """One line for the person, never on standard output."""
    _print(localized(text))


def _print(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


def error(text: str) -> None:
    _print("jmedlite: " + shortened(localized(" ".join(text.split()))))


def warn(text: str) -> None:
    _print("jmedlite: " + localized("warning") + ": " + shortened(localized(" ".join(text.split()))))


def document(value: Any) -> None:
    """One JSON document on standard output."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    out(_UNESCAPED.sub(lambda c: f"\\u{ord(c[0]):04x}", text))


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], *, named: bool = False) -> None:
    """A table on standard output; columns are (heading, "left" or "right").

    Where rows are `named`, their first cells are words of ours; a single word in another cell is taken for a name.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in columns:
        grid.add_column(Text(plain(localized(heading))), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        said = (localized(cell) if " " in cell or (named and not i) else cell for i, cell in enumerate(row))
        grid.add_row(*(Text(plain(cell)) for cell in said))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    with _pipe():
        console.print(grid)
        sys.stdout.flush()


@contextmanager
def progress(first: Stage | None = None) -> Iterator[Progress]:
    """A display for each stage, one after the other: a bar with rate and time left, or a line per tenth in a pipe.

    `first` is shown before anything is heard of it.
    """
    with ExitStack() as stack:
        shown = first
        show = stack.enter_context(_display(first)) if first else silent

        def tell(stage: Stage, done: int, total: int, what: str) -> None:
            nonlocal shown, show
            if stage != shown:
                stack.close()
                shown, show = stage, stack.enter_context(_display(stage))
            show(done, total, "" if stage in IN_BYTES else what)

        yield tell


@contextmanager
def _display(stage: Stage) -> Iterator[Callable[[int, int, str], None]]:
    label, unit = localized(LABELS[stage]), size if stage in IN_BYTES else None
    if sys.stderr.isatty():
        from rich import progress as bars
        from rich.console import Console

        columns = (bars.DownloadColumn(), bars.TransferSpeedColumn()) if unit else (bars.MofNCompleteColumn(),)
        with bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            *columns,
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[now]}", markup=False),
            console=Console(stderr=True),
            refresh_per_second=4,
            speed_estimate_period=600,  # batches come seconds apart
        ) as bar:
            task = bar.add_task(label, total=None, now="")
            yield lambda done, total, now: bar.update(task, completed=done, total=total, now=plain(now))
        return
    show = unit or (lambda n: f"{n:,.0f}")
    started, told, first = time.monotonic(), 0, -1

    def tell(done: int, total: int, now: str) -> None:
        nonlocal told, first
        first = done if first < 0 else first  # what was done before is no measure of the speed
        tenth = done * 10 // max(1, total)
        if tenth > told:
            told = tenth
            elapsed = time.monotonic() - started
            parts = [f"{tenth * 10} %", localized(f"{show(done)} of {show(total)}"), f"{elapsed:.0f} s"]
            if done > first:
                parts.append(localized(f"{elapsed * (total - done) / (done - first):.0f} s left"))
            _print(f"{label}: {', '.join(parts)}" + (f" ({now})" if now else ""))

    yield tell

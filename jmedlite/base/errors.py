"""Expected faults, each with the exit code a shell sees. The command line prints the message as one line."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

LONGEST = 600  # characters of a sentence for people
_HEAD = 380


def shortened(text: str) -> str:
    """One line of at most LONGEST characters, the rest cut out of its middle: files hold values of any length."""
    text = " ".join(text.splitlines())
    return text if len(text) <= LONGEST else f"{text[:_HEAD]} […] {text[_HEAD + 5 - LONGEST :]}"


class JmedliteError(Exception):
    """A fault with a sentence for people: what was found, what was expected, what to do next."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))
        self.whole = message  # a sentence is known in other languages as a whole


class UsageError(JmedliteError):
    """The command or its arguments make no sense together."""

    exit_code = 2


class DataError(JmedliteError):
    """A file's content is not what its format, or its partner file, says it must be."""

    exit_code = 65


class ContextFull(DataError):
    """A question, or a conversation, has more tokens than the context has room for."""


class InputMissing(JmedliteError):
    """A file or folder named as input is not there."""

    exit_code = 66


class Unavailable(JmedliteError):
    """The network or the Hub could not be reached, or delivered something else."""

    exit_code = 69


class NativeError(JmedliteError):
    """llama.cpp ended the child process, or refused what it was given."""

    exit_code = 70


class InternalError(JmedliteError):
    """A mistake in jmedlite itself, or a fault that nobody foresaw."""

    exit_code = 70


class CannotCreate(JmedliteError):
    """Something can't be created: an output that exists or has no folder; the disk or the memory is too small."""

    exit_code = 73


class IoFault(JmedliteError):
    """Reading or writing failed half-way."""

    exit_code = 74


class Busy(JmedliteError):
    """Another run is writing the same output."""

    exit_code = 75


class NotPermitted(JmedliteError):
    """The system refused access."""

    exit_code = 77


class ClosedPipe(JmedliteError):
    """Whoever read standard output went away; there is nobody to tell."""

    exit_code = 141


class Interrupted(JmedliteError):
    """The person pressed Ctrl-C."""

    exit_code = 130


BY_EXIT_CODE: dict[int, type[JmedliteError]] = {
    kind.exit_code: kind
    for kind in (
        UsageError,
        DataError,
        InputMissing,
        Unavailable,
        NativeError,
        CannotCreate,
        IoFault,
        Busy,
        NotPermitted,
        Interrupted,
    )
}
BY_NAME: dict[str, type[JmedliteError]] = {
    kind.__name__: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, JmedliteError)
}
_OUR_FOLDERS = ("jmedlite", "convert", "benchmarks")


# What a system refuses, by its number: the exit code's class, what to say after the path, and what to do.
_REFUSED: tuple[tuple[tuple[int, ...], type[JmedliteError], str], ...] = (
    (
        (errno.EACCES, errno.EPERM, errno.EROFS),
        NotPermitted,
        "{doing}is not permitted ({reason}); choose another folder (--out)",
    ),
    ((errno.ENAMETOOLONG,), CannotCreate, "the name is too long for this system ({reason}); choose a shorter one"),
    (
        (errno.EFBIG,),
        IoFault,
        "is larger than this system, its disk or a limit (`ulimit -f`) allows; partial files were removed, write "
        "smaller files with --split-max-size or raise the limit",
    ),
    (
        (errno.EMFILE, errno.ENFILE),
        IoFault,
        "too many files are open ({reason}); raise the limit, as `ulimit -n 1024` does, and run again",
    ),
    (
        (errno.ENOSPC, errno.EDQUOT),
        IoFault,
        "the disk is full; partial files were removed, free some space and run again",
    ),
    (
        (errno.ENOMEM, errno.EAGAIN),
        CannotCreate,
        "the system has no more memory or processes to give ({reason}); close programs",
    ),
)


def system_fault(error: OSError, path: Path | None = None, doing: str = "") -> JmedliteError:
    """The sentence and exit code for what a system refused, while `doing` something ("writing") to `path`."""
    name = error.filename if path is None and isinstance(error.filename, str) else path
    where, reason = f"{name}: " if name else "", error.strerror or str(error) or type(error).__name__
    if "temporary directory" in reason:  # tempfile's own words
        return CannotCreate(f"there is no folder for temporary files ({reason}); set TMPDIR to one with room")
    for numbers, kind, words in _REFUSED:
        if error.errno in numbers:
            return kind(where + words.format(doing=f"{doing} " if doing else "", reason=reason))
    return IoFault(where + (f"{doing} failed ({reason})" if doing else f"the system refused ({reason})"))


_NO_ROOM = "failed to map segment"  # the linker's words where a library does not fit the memory


def as_expected(error: BaseException) -> JmedliteError:
    """What nobody caught, as a sentence with an exit code: what a system refuses, what is no more, mistakes of ours."""
    if isinstance(error, JmedliteError):
        return error
    if isinstance(error, OSError):
        return system_fault(error)
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and _NO_ROOM in str(error)):
        return CannotCreate("memory ran out; close other programs, or choose something smaller")
    if isinstance(error, RecursionError):
        return DataError(f"a file is nested too deeply to be read{_place(error)}")
    if isinstance(error, UnicodeError | OverflowError):
        return DataError(f"a text or number can't be represented ({error}){_place(error)}")
    return InternalError(
        f"this is a mistake in jmedlite ({type(error).__name__}: {error}{_place(error)}); please report this line, and "
        "what the same command shows with JMEDLITE_DEBUG=1"
    )


def _place(error: BaseException) -> str:
    """Where in our own files it happened, the innermost."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if {*Path(f.filename).parts} & {*_OUR_FOLDERS}]
    return f", at {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""

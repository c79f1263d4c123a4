"""Expected faults, each with the exit code a shell sees. The command line prints the message as one line."""

from __future__ import annotations


class JmedliteError(Exception):
    """A fault with a sentence for people: what was found, what was expected, what to do next."""

    exit_code = 1


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

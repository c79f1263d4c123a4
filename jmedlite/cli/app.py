"""The command line: parses, calls, prints. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Annotated

# The pass has its own worker threads; BLAS threads under each would only fight them. Set before numpy loads.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, "1")

import typer

from jmedlite import __version__
from jmedlite.base.errors import ClosedPipe, Interrupted, as_expected
from jmedlite.base.lean import import_leanly
from jmedlite.base.signals import Terminated, catch_ending, no_core_dumps

from . import console
from .ask import ask
from .bench import bench
from .chat import chat
from .command import Command, warn_of_variables
from .demo import demo
from .doctor import doctor
from .imatrix import imatrix
from .inspect import inspect
from .models import models
from .moments import moments
from .pack import pack
from .quantize import quantize
from .recommend import recommend
from .report import report
from .sensitivity import sensitivity
from .serve import serve
from .typer_words import SpeakingGroup
from .use import use
from .verify import verify

app = typer.Typer(
    name="jmedlite",
    cls=SpeakingGroup,
    help="Medical language models on one laptop: merge LoRA, quantize to GGUF in one pass, ask offline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "JMEDLITE"},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.out(f"jmedlite {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Medical language models on one laptop: merge LoRA, quantize to GGUF in one pass, ask offline."""


COMMANDS = (
    quantize, imatrix, sensitivity, moments, ask, chat, serve, models, use, doctor, bench, demo, inspect, verify,
    report, recommend, pack,
)  # fmt: skip
for _command in COMMANDS:
    app.command(cls=Command)(_command)


def main() -> None:
    """Entry point: every fault becomes one line and its exit code; JMEDLITE_DEBUG shows where it came from."""
    try:
        for stream in (sys.stdout, sys.stderr):
            # a pipe on Windows has the code page of the system, which may lack what a model writes
            if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
                stream.reconfigure(encoding="utf-8", errors="replace")
        catch_ending()
        no_core_dumps()  # Ctrl-\ writes one, and this process holds the question, too
        import_leanly()
        warn_of_variables(os.environ, app)
        app()
    except ClosedPipe as e:
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        console.note("")
        sys.exit(Interrupted.exit_code)
    except Terminated as e:
        console.error(f"ended by {e.name}; what was begun is removed")
        raise
    except SystemExit:
        raise
    except BaseException as e:
        if os.environ.get("JMEDLITE_DEBUG"):
            traceback.print_exception(e)
        fault = as_expected(e)
        console.error(fault.whole)
        sys.exit(fault.exit_code)


if __name__ == "__main__":
    main()

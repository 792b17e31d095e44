"""The command ``counterpoint``: it finds the verb, and reports a user's mistake in one line."""

import importlib
import io
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from counterpoint.errors import UserError, nearest, nearest_file
from counterpoint.packages import installed_version, missing_package
from counterpoint.processes import INTERRUPTED, ended_at_once, interruptible, wait_briefly
from counterpoint.progress import Progress

VERBS = (
    "demo",
    "train",
    "generate",
    "talk",
    "synthesize",
    "evaluate",
    "report",
    "info",
    "export",
    "study",
    "task",
)
_GO_ON = ("train", "synthesize", "study")
"""Verbs that keep finished work and continue from there."""
_HELP = """usage: counterpoint VERB ...

Multi-stream language models.

  demo              hear and read small models   counterpoint demo --folder heard
  train RECIPE      train what a recipe says     counterpoint train first_run
  study NAME        compare systems on tasks     counterpoint study part_whole --workers 2
  task export DIR   tasks for any model          counterpoint task export partwhole
  generate CKPT     continue a prompt            counterpoint generate runs/NAME --prompt "And God"
  talk [CKPT]       answer a recording           counterpoint talk --input question.wav
                                                   --output answer.wav
  synthesize FILE   speak written dialogues      counterpoint synthesize scripts.jsonl --out spoken
  evaluate CKPT     score what was held out      counterpoint evaluate runs/NAME
  report RUN        write the report again       counterpoint report runs/NAME
  info CKPT|RECIPE  layout, size and costs       counterpoint info two_stream.small
  export CKPT       write a published folder     counterpoint export runs/NAME --merge --out FOLDER

A CKPT is a checkpoint, a run folder, or a model that comes with the package: duplex_small (hears
and answers), lslm_alexa (reads aloud), shanks_orders (thinks while it listens) or two_stream_bible
(text). `counterpoint VERB --help` shows the most important options, `counterpoint VERB --help-all`
shows all of them, and `counterpoint --version` shows the versions.
`counterpoint --show-completion bash|zsh|fish` prints a script with which the shell completes words.
Ctrl-C ends a command and keeps finished work; a second Ctrl-C ends it at once.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after ``counterpoint``; by default those of this process.

    Returns:
        Exit status: 0, or 2 after a mistake of the user, or 130 after an interruption.
    """
    wait_briefly()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack letters of a name
            stream.reconfigure(errors="replace")
    with interruptible():
        return _status(list(sys.argv[1:] if arguments is None else arguments))


def _status(words: list[str]) -> int:
    """Run one command; an exception becomes a line and an exit status."""
    try:
        status = _run(words)
        sys.stdout.flush()  # an error of a closed pipe is raised here, not while Python ends
        return status
    except SystemExit as end:  # tyro ends so after help and after mistakes
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt as interruption:
        print(_interrupted(words, str(interruption)), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `counterpoint ... | head`
        # Then nothing is flushed into the closed pipe when Python ends.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open to the end)
        return 141
    except ModuleNotFoundError as error:
        missing = missing_package(error.name or "")
        if missing is None:
            raise
        return _complain(str(missing))
    except (UserError, OSError) as error:
        # All other errors are faults of the program, and their traceback is helpful.
        return _complain(_message(error))


def _run(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "--help-all"):
        print(_HELP, end="")
        return 0
    if verb in ("-V", "--version"):
        print(f"counterpoint {installed_version('counterpoint')}")
        print(f"torch {installed_version('torch')}, Python {platform.python_version()}")
        return 0
    if verb == "--show-completion":
        from counterpoint.cli.completion import completion  # it loads all that verbs load

        print(completion(" ".join(rest), VERBS, _run), end="")
        return 0
    if verb not in VERBS:
        raise UserError(
            f"The first word must be one of {', '.join(VERBS)}: got {verb!r}. "
            f"{nearest(verb, VERBS)}"
        )
    is_quiet = bool({"--quiet", "-h", "--help", "--help-all"} & set(rest))
    doing = Progress(quiet=is_quiet).doing("loading the library")  # with torch it takes seconds
    with doing, ended_at_once(_interrupted(arguments)):
        module = importlib.import_module(f"counterpoint.cli.{verb}")
    status: int = module.main(rest)
    return status


def _interrupted(words: Sequence[str], told: str = "") -> str:
    """Return the line about an interruption: what a verb has told of it, and how to go on."""
    go_on = " Run the same command again to continue." if words and words[0] in _GO_ON else ""
    return f"{told or 'Interrupted.'}{go_on}"


def _message(error: UserError | OSError) -> str:
    if isinstance(error, FileNotFoundError) and isinstance(error.filename, str | Path):
        return f"{error.filename}: {error.strerror}. {nearest_file(error.filename)}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, OSError) and error.strerror is not None:
        return f"{error.strerror.rstrip('.')}."
    return str(error)


def _complain(message: str) -> int:
    print(f"counterpoint: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

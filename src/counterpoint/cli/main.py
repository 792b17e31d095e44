"""The command ``counterpoint``: finds the verb, and tells a user's mistake in one line."""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from counterpoint.errors import UserError
from counterpoint.packages import missing_package

_VERBS = ("train", "generate", "talk", "synthesize", "evaluate", "report", "info", "export")

_HELP = """usage: counterpoint VERB ...

Multi-stream language models.

  train RECIPE      train what a recipe says     counterpoint train first_run
  generate CKPT     continue a prompt            counterpoint generate runs/NAME --prompt "And God"
  talk CKPT         answer a recording           counterpoint talk runs/NAME --input question.wav
                                                   --output answer.wav
  synthesize FILE   speak written dialogues      counterpoint synthesize scripts.jsonl --out spoken
  evaluate CKPT     score what was held out      counterpoint evaluate runs/NAME
  report RUN        write the report again       counterpoint report runs/NAME
  info CKPT|RECIPE  layout, size and costs       counterpoint info first_run
  export CKPT       write a published folder     counterpoint export runs/NAME --merge --out FOLDER

`counterpoint VERB --help` tells more. A CKPT is a checkpoint or a run folder.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after ``counterpoint``; by default those of this process.

    Returns:
        Exit status: 0, 2 after a mistake of the user, 130 after an interruption.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name or a word may not be in its encoding
            stream.reconfigure(errors="replace")
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # a closed pipe shows here, not while Python ends
        return status
    except SystemExit as end:  # how tyro ends after help and after mistakes
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `counterpoint ... | head`
        # Nothing is left to be flushed into the closed pipe when Python ends.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 141
    except ModuleNotFoundError as error:
        missing = missing_package(error.name or "")
        if missing is None:
            raise
        return _complain(str(missing))
    except (UserError, OSError) as error:
        # All else is a fault of the program: its traceback is what helps.
        return _complain(_message(error))


def _run(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if verb not in _VERBS:
        near = get_close_matches(verb, _VERBS, n=1, cutoff=0)
        raise UserError(
            f"The first word must be one of {', '.join(_VERBS)}: got {verb!r}. "
            f"The nearest is {near[0]!r}."
        )
    status: int = importlib.import_module(f"counterpoint.cli.{verb}").main(rest)
    return status


def _message(error: UserError | OSError) -> str:
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

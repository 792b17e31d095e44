"""Options that every long verb has: where it computes, and what it shows of that."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from counterpoint.errors import UserError
from counterpoint.files import json_value
from counterpoint.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What a command shows of its work.

    Attributes:
        quiet: Show no progress.
        json: Print the results as one JSON object and nothing else.
    """

    quiet: bool = False
    json: bool = False

    def progress(self) -> Progress:
        """Shows how far the command is, on stderr."""
        return Progress(quiet=self.quiet)

    @contextmanager
    def results(self) -> Iterator[Callable[[Any], None]]:
        """Gives a function that takes the results as a JSON value.

        Where they are wanted as JSON, nothing else that is printed in the block is shown.
        """
        if not self.json:
            yield lambda found: None
            return
        told = list[Any]()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield told.append
        for found in told:
            print(json.dumps(json_value(found), ensure_ascii=False))


@dataclass(frozen=True, kw_only=True, slots=True)
class Running(Shown):
    """Where a command computes, and what it shows of that.

    Attributes:
        quiet: Show no progress.
        json: Print the results as one JSON object and nothing else.
        device: Where it computes; "auto" takes a CUDA GPU where there is one, else the CPU.
    """

    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|mps")] = "auto"


def check_output() -> None:
    """Refuse an output that cannot take any text, before there is half of it.

    Raises:
        UserError: Its encoding has no letters for some texts.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        "\N{REPLACEMENT CHARACTER}\N{GRINNING FACE}".encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"The output must be able to take any text: its encoding is {encoding!r}. Set "
            "PYTHONIOENCODING=utf-8 and run the same command again."
        ) from error

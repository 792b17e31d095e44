"""Options of every long verb: the device, and what the verb shows of its work."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from counterpoint.errors import UserError
from counterpoint.files import json_value
from counterpoint.progress import Progress
from counterpoint.runtime.load import Loaded, WeightType, load


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """Options of the output of a command.

    Attributes:
        quiet: Show no progress.
        json: Print the results as one JSON object and nothing else.
    """

    quiet: bool = False
    json: bool = False

    def progress(self) -> Progress:
        """Return the display of the command's progress on stderr."""
        return Progress(quiet=self.quiet)

    @contextmanager
    def results(self) -> Iterator[Callable[[Any], None]]:
        """Give a function that takes the results as a JSON value.

        If results are wanted as JSON, other text that is printed in the block is not shown.
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
    """Options of the device and the output of a command.

    Attributes:
        quiet: Show no progress.
        json: Print the results as one JSON object and nothing else.
        device: Device of the computation; "auto" takes a CUDA GPU if there is one, otherwise the
            CPU.
    """

    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda|mps")] = "auto"

    def load(
        self, path: Path, *, dtype: WeightType | None = None, adapters: Path | None = None
    ) -> Loaded:
        """Load a model on the device, and show that; see `counterpoint.runtime.load.load`."""
        with self.progress().doing(f"loading {path}"):
            return load(path, self.device, dtype=dtype, adapters=adapters)


def plain_console() -> Console:
    """Return a console that prints tables on stdout, wide enough for a file."""
    width = None if sys.stdout.isatty() else 140
    return Console(file=sys.stdout, width=width, markup=False, emoji=False)


def check_output() -> None:
    """Refuse an output that cannot print any text, before half of it is printed.

    Raises:
        UserError: Its encoding lacks characters.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        "\N{REPLACEMENT CHARACTER}\N{GRINNING FACE}".encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"The output must accept any text: its encoding is {encoding!r}. Set "
            "PYTHONIOENCODING=utf-8 and run the same command again."
        ) from error

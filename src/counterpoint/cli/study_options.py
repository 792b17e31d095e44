"""Options of every kind of study."""

from dataclasses import dataclass
from pathlib import Path

from counterpoint.cli.running import Running
from counterpoint.errors import check_minutes


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOptions(Running):
    """Options that say how a study is run.

    Attributes:
        quiet: Show no progress.
        json: Print the results as one JSON object and nothing else.
        device: Device on which models are trained; "auto" takes a CUDA GPU if there is one, else
            the CPU.
        folder: Folder of all results; runs/NAME by default, or runs/NAME_N_minutes.
        minutes: Run the largest declared size that this machine finishes in this time. The size is
            kept in the folder.
    """

    folder: Path | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        check_minutes(self.minutes)

    def place(self, name: str) -> Path:
        """Return the folder of the results of a study; each number of minutes has its own."""
        within = "" if self.minutes is None else f"_{self.minutes:g}_minutes"
        return self.folder or Path("runs") / f"{name}{within}"

"""A run: everything that decides what is trained, on which data and how, as one frozen value."""

from dataclasses import dataclass, field

from counterpoint.data.making.interrupted import InterruptedSpeech
from counterpoint.data.source import DataSource
from counterpoint.data.speech.rows import SpeechData
from counterpoint.data.tasks.source import TaskData
from counterpoint.data.tasks.spoken_maths.source import SpokenMathsData
from counterpoint.data.tasks.spoken_orders.source import SpokenOrdersData
from counterpoint.data.text.corpus import DataConfig
from counterpoint.data.text.held_out import TEXT_STREAM
from counterpoint.errors import UserError, check_minutes
from counterpoint.files import check_name
from counterpoint.streams.spec import Layout, Role
from counterpoint.systems import SystemConfig, system_layout
from counterpoint.train.config import TrainConfig
from counterpoint.train.phases import PhasedData
from counterpoint.train.rewarded import RewardedData

AnyData = (
    DataConfig
    | SpeechData
    | TaskData
    | SpokenMathsData
    | SpokenOrdersData
    | InterruptedSpeech
    | PhasedData
    | RewardedData
    | DataSource
)
"""Data of a run: those of the library are restored from JSON, and others may be given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run.

    Attributes:
        name: Name of its folder and its curves.
        system: Config of the model.
        data: Data it learns from: `SpeechData` for systems that hear or speak, `DataConfig` for
            text systems, `TaskData` for items of a task, `SpokenMathsData` for thinking while
            listening, `SpokenOrdersData` for calling a tool meanwhile, `InterruptedSpeech` for a
            speaker that can be interrupted, `PhasedData` for several in phases, `RewardedData` for
            questions to be answered, or another `DataSource`.
        train: Settings of the training.
        minutes: Time limit: the run takes as many of its steps as fit into it on this machine
            (`counterpoint.recipes.budget`). ``None`` takes all steps.
    """

    name: str
    system: SystemConfig
    train: TrainConfig
    data: AnyData = field(default_factory=DataConfig)
    minutes: float | None = None

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_minutes(self.minutes)
        if self.minutes is not None and self.train.phases:
            raise UserError(
                f"`minutes` must be left out for a run with phases: got {self.minutes:g}. Its "
                "tokens say how long it is."
            )
        layout = system_layout(self.system)
        if not self.data.fits(layout):
            raise UserError(_misfit(self, layout))

    @property
    def text_data(self) -> DataConfig:
        """The ``data`` of a text run.

        Raises:
            UserError: The run has other data.
        """
        if not isinstance(self.data, DataConfig):
            learned = type(self.data).__name__
            raise UserError(f"The run must be on text: {self.name!r} learns from {learned}.")
        return self.data

    @property
    def speech_data(self) -> SpeechData:
        """The ``data`` of a speech run.

        Raises:
            UserError: The run has other data.
        """
        if not isinstance(self.data, SpeechData):
            learned = type(self.data).__name__
            raise UserError(f"The run must be on recordings: {self.name!r} learns from {learned}.")
        return self.data


def _misfit(run: Run, layout: Layout) -> str:
    """Return why the system of a run, which has this layout, cannot read its data."""
    parts = layout.by_role(Role.PART)
    if isinstance(run.data, DataConfig) and parts:
        return (
            f"The stream that text fills must be named {TEXT_STREAM!r}: got {parts[0].name!r}, "
            "whose role is PART. Rename it in the system's layout."
        )
    fitting = [kind.__name__ for kind in (DataConfig, SpeechData) if kind.fits(layout)]
    return (
        f"`data` must be {' or '.join(fitting) or 'a source of its own'} where `system` is "
        f"{type(run.system).__name__}: got {type(run.data).__name__}. Change one of them."
    )

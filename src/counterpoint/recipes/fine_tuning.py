"""Fine-tuning a published speech model on folders of your own recordings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.data.speech.folders import (
    HELD_OUT,
    FolderOfData,
    find_recordings,
    parse_folder,
    split,
    write_list,
    write_missing_words,
    write_unknown_words,
)
from counterpoint.data.speech.rows import SpeechData, WeightedList, codec_of
from counterpoint.data.speech.words import open_tokenizer
from counterpoint.errors import UserError, check_minutes
from counterpoint.evaluate.duplex.timing import Timing, TimingConfig
from counterpoint.files import check_name
from counterpoint.formats import find_format
from counterpoint.progress import Progress, spell_duration
from counterpoint.recipes.budget import Plan
from counterpoint.recipes.training import REPORT_S, train_run
from counterpoint.runtime.load import find_checkpoint, is_ours, load_run
from counterpoint.runtime.shipped import TALKS, find_shipped
from counterpoint.speech.transcriber import EMBEDDED, Transcriber
from counterpoint.systems import sketch
from counterpoint.systems.contract import SystemConfig
from counterpoint.train.config import FineTuneConfig, TrainConfig
from counterpoint.train.distributed import World
from counterpoint.train.loop import TrainResult
from counterpoint.train.run import Run

NO_RECOGNISER = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuning:
    """A published model, and how it is fine-tuned on recordings of two channels.

    Attributes:
        name: Name of its folder.
        base: Model to begin with: a folder as Kyutai or NVIDIA publishes it (model, Mimi and text
            tokeniser), or a speech run of ours.
        data: Folders of recordings with the agent left and the user right, or .jsonl lists of them:
            PATH, PATH:WEIGHT or NAME=PATH:WEIGHT.
        held_out: Share of the recordings of each folder that is only measured on.
        recogniser: What transcribes missing words: "tiny.en" comes with the extra `recogniser`; or
            a name or folder of faster-whisper, such as "medium"; or "none", which trains no text.
        words_beside: Whether missing words are written next to the recordings, and not into the
            run's folder.
        row_s: Seconds of a row, and of the longest piece of a recording that is read as one.
        full: Whether all weights are trained, and not only adapters.
        adapters: The adapters, and the type of the weights that they change.
        checkpoint_activations: Whether activations are computed twice instead of being kept.
        minutes: Time limit of everything: as many steps as fit beside words, codes and measurements
            (`counterpoint.recipes.budget`). ``None`` takes all steps.
        timing: Moments at which greeting and response are measured during training.
        train: Settings of the training.
    """

    name: str
    base: str = ""
    data: tuple[str, ...] = ()
    held_out: float = 0.05
    recogniser: str = EMBEDDED
    words_beside: bool = True
    row_s: float = 100.0
    full: bool = False
    adapters: LowRankConfig = field(default_factory=LowRankConfig)
    checkpoint_activations: bool = True
    minutes: float | None = None
    timing: TimingConfig = field(default_factory=TimingConfig)
    train: TrainConfig

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_minutes(self.minutes)
        if not 0 <= self.held_out < 1:
            raise UserError(f"`held_out` must be a share from 0 to 1: got {self.held_out}.")

    def described_runs(self) -> tuple[Run, ...]:
        """Return the training run without its data; see `HasRuns`."""
        return (self.run(),)

    def run(self, lists: Sequence[WeightedList] = (), held_out: str = "") -> Run:
        """Return the training run.

        Args:
            lists: Lists to learn from; without lists, the run can only be asked for its costs.
            held_out: List that is only measured on; empty for none.

        Raises:
            UserError: There is no base model, or it is no speech model.
        """
        system, codec, tokenizer = self._base()
        first = lists[0].weight if lists else 1.0
        return Run(
            name=self.name,
            minutes=self.minutes,
            system=self._keeping_less(system),
            data=SpeechData(
                train=lists[0].path if lists else "",
                others=tuple(replace(other, weight=other.weight / first) for other in lists[1:]),
                held_out=held_out,
                codec=codec,
                tokenizer=tokenizer,
                row_s=self.row_s,
            ),
            train=replace(
                self.train,
                fine_tune=FineTuneConfig(
                    init_from=str(self._base_path()),
                    low_rank=None if self.full else self.adapters,
                ),
            ),
        )

    @property
    def export_options(self) -> str:
        """Options of ``counterpoint export`` that write the trained model as its base was."""
        return "--form counterpoint" if is_ours(self._base_path()) else "--merge"

    def _base_path(self) -> Path:
        path = find_shipped(Path(self.base).expanduser())
        if not self.base or not path.exists():
            raise UserError(
                "`--base` must be a folder with a published model, its Mimi and its tokeniser, or "
                f"a run folder: got {self.base!r}. Fetch one, such as kyutai/moshiko-pytorch-bf16, "
                f"or try {TALKS}, which comes with the package."
            )
        return path.resolve()

    def _base(self) -> tuple[SystemConfig, str, str]:
        """Return the config of the model, its codec and its tokeniser, without reading weights."""
        path = self._base_path()
        if is_ours(path):
            run = load_run(find_checkpoint(path))
            return run.system, run.speech_data.codec, run.speech_data.tokenizer
        known = find_format(path)
        published = None if known is None else known.open(path)
        if published is None or published.codec is None:
            raise UserError(
                f"`--base` must be a speech model in a known published format: {path} is none."
            )
        return published.shape(), str(published.codec), str(published.tokenizer)

    def _keeping_less(self, system: SystemConfig) -> SystemConfig:
        """Return the system with activation checkpointing as wanted, in all parts that have it."""
        changes: dict[str, Any] = {}
        for name in getattr(system, "__dataclass_fields__", ()):
            part = getattr(system, name)
            if hasattr(part, "checkpoint_activations"):
                wanted = self.checkpoint_activations
                changes[name] = replace(part, checkpoint_activations=wanted)
        return replace(system, **changes)


def run_fine_tuning(
    study: FineTuning, folder: Path, world: World, progress: Progress | None = None
) -> TrainResult:
    """Write missing words, make lists, train, and measure timing on held-out recordings.

    The folder of the run also gets ``lists/``. Finished steps are not repeated.

    Raises:
        UserError: The base model or the data cannot be used, or something is not installed.
    """
    begin = time.perf_counter()
    progress = Progress() if progress is None else progress
    shape = study.run()
    codec_of(sketch(shape.system), shape.speech_data.codec)
    open_tokenizer(shape.speech_data.tokenizer)
    problem = None
    lists: list[WeightedList] = []
    held_out = ""
    if world.is_first:
        try:
            lists, held_out = _lists(study, folder, progress)
        except (UserError, OSError) as error:  # all processes wait for the answer
            problem = str(error)
    problem, lists, held_out = world.from_first((problem, lists, held_out))
    if problem is not None:
        raise UserError(problem)
    run = study.run(lists, held_out)
    timing = None
    if study.timing.moments and held_out and world.size > 1:
        progress.note("Timing is not measured: it needs one process.")
    elif study.timing.moments and held_out:
        timing = Timing(run.speech_data, sketch(run.system), study.timing)
        if not timing.moments:
            progress.note(
                "Timing is not measured: the held-out recordings have no moment with "
                f"{study.timing.horizon_s:g} s after it and known words."
            )
    train = run.train
    progress.note(
        f"A step reads {train.batch_rows} rows of {study.row_s:g} s, "
        f"{max(train.batch_rows // train.accumulation, 1)} at a time"
    )
    plan = Plan(begin=begin, also=timing, reserve_s=REPORT_S)
    return train_run(run, folder, world, plan=plan, progress=progress)


def _lists(study: FineTuning, folder: Path, progress: Progress) -> tuple[list[WeightedList], str]:
    """Return lists to learn from, with weights, and the held-out list; all words are written."""
    sources = [parse_folder(word) for word in study.data]
    names = [source.name for source in sources]
    if not sources or len(set(names)) < len(names):
        raise UserError(
            f"`--data` must name folders of recordings, each with its own name: got {names}. "
            "Give PATH or NAME=PATH:WEIGHT."
        )
    beside = None if study.words_beside else folder / "words"
    found = {source.name: find_recordings(source, beside) for source in sources}
    together = [recording for own in found.values() for recording in own]
    if study.recogniser == NO_RECOGNISER:
        write_unknown_words(together)
    elif missing := sum(not recording.words.is_file() for recording in together):
        where = "beside the recordings" if study.words_beside else f"into {folder / 'words'}"
        progress.note(f"{missing} recordings have no words: {study.recogniser} writes them {where}")
        task = progress.task("transcribing", spell=spell_duration)
        write_missing_words(together, Transcriber(study.recogniser).words, task)
    held_out = []
    lists = []
    for source in sources:
        learned, kept = split(found[source.name], study.held_out)
        held_out += kept
        path = folder / "lists" / f"{source.name}.jsonl"
        write_list(learned, path)
        lists.append(WeightedList(path=str(path), weight=source.weight))
        progress.note(_described(source, len(learned), len(kept)))
    path = folder / "lists" / f"{HELD_OUT}.jsonl"
    if not held_out:
        return lists, ""
    write_list(held_out, path)
    return lists, str(path)


def _described(source: FolderOfData, num_learned: int, num_held_out: int) -> str:
    return (
        f"{source.name}: {num_learned} recordings to learn from, weight {source.weight:g}; "
        f"{num_held_out} held out"
    )

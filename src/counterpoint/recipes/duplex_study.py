"""A duplex study: dialogues are synthesised, a model learns from them, and live talk is measured.

Before the model talks it learns to listen: its text writes down what the user says, first word by
word, then sentence by sentence, which it must remember. In a dialogue only the few words that
decide an answer show whether it has understood; in listening every word does.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from counterpoint.config_json import encode
from counterpoint.data.making.orders import listening_scripts, order_scripts
from counterpoint.data.making.scripts import Script
from counterpoint.data.making.synthesis import LIST_NAME, SynthesisConfig, synthesize
from counterpoint.data.speech.dialogues import DialogueConfig
from counterpoint.data.speech.rows import SpeechData, codec_of
from counterpoint.data.speech.words import open_tokenizer, train_tokenizer
from counterpoint.errors import UserError, check_minutes
from counterpoint.evaluate.duplex.abilities import (
    AbilityScore,
    abilities_table,
    count_outcomes,
    hold_trials,
)
from counterpoint.evaluate.duplex.trials import ABILITIES, Ability, order_trials
from counterpoint.files import read_json_lines, write_json, write_json_lines
from counterpoint.processes import work_in_processes
from counterpoint.progress import Progress, spell_duration
from counterpoint.recipes.begun import keep_or_check_begun
from counterpoint.recipes.budget import FILE as BUDGET
from counterpoint.recipes.budget import Plan, find_budget
from counterpoint.recipes.training import prepare_together, train_in_turn
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.load import SAMPLING, load
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.talk import Talker
from counterpoint.speech.audio import write_audio
from counterpoint.speech.engines import digest
from counterpoint.speech.voices import Synthesizer
from counterpoint.systems import build_system, sketch, system_layout
from counterpoint.train.distributed import World
from counterpoint.train.run import Run
from counterpoint.train.threads import computing, settle_threads

_TIMED_TRIALS = 4
PADDING_BIAS = 3.0
"""Chosen on other wordings; with a larger bias, orders after interruptions are not answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplexStudy:
    """One model that learns to answer spoken orders, in stages.

    Attributes:
        run: The model, and how it learns to talk; its data become the dialogues of the study.
        listening: How the same model first learns to listen; each run continues the one before it.
        synthesis: How dialogues sound, and who speaks in trials.
        num_listening: Number of recordings of the user alone; the model listens to these and to all
            dialogues.
        num_train: Number of training dialogues.
        num_held_out: Number of dialogues on which the loss is measured; they have other wordings.
        num_trials: Number of live conversations for each ability.
        vocab_size: Largest number of pieces of the text tokeniser, which learns from the scripts.
        minutes: Time for everything: what dialogues and trials leave is for the steps, of which all
            stages take the same share (`counterpoint.recipes.budget`). At most a quarter is for
            trials, so there may be fewer. ``None`` takes all steps.
        workers: Number of processes that make dialogues and measure.
    """

    run: Run
    listening: tuple[Run, ...]
    synthesis: SynthesisConfig
    num_listening: int = 2500
    num_train: int = 4000
    num_held_out: int = 100
    num_trials: int = 100
    vocab_size: int = 400
    workers: int = 2
    minutes: float | None = None

    def __post_init__(self) -> None:
        check_minutes(self.minutes)
        if not isinstance(self.run.data, SpeechData):
            raise UserError(
                "A duplex study must train a system that hears and speaks, on SpeechData: got "
                f"{type(self.run.system).__name__}."
            )
        self._check_stages()
        for name in ("num_listening", "num_train", "num_held_out", "num_trials", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be >= 1: got {getattr(self, name)}.")
        most = system_layout(self.run.system)["text"].vocab_size or 0
        if not 1 <= self.vocab_size <= most:
            raise UserError(
                f"`vocab_size` must be 1 to the model's {most} text ids: got {self.vocab_size}."
            )
        if not self.synthesis.user_voices:
            raise UserError("`synthesis.user_voices` must name the voices in trials: got none.")

    def _check_stages(self) -> None:
        names = [run.name for run in self.listening]
        if len(set(names)) < len(names) or set(names) & {"dialogues", "utterances", "checkpoints"}:
            raise UserError(
                f"Runs of `listening` must have different, unused folder names: got {names}."
            )
        for run in self.listening:
            if run.system != self.run.system:
                raise UserError(f"{run.name!r} must have the `system` of {self.run.name!r}.")
            if run.speech_data.hearing is None:
                raise UserError(f"`data.hearing` of {run.name!r} must be set: got None.")
        for run in self.stages[1:]:
            if run.train.fine_tune is not None:
                raise UserError(
                    f"`train.fine_tune` of {run.name!r} must be left out: it begins with the "
                    f"weights of the stage before it. Set it for {self.stages[0].name!r}, the "
                    "first stage."
                )

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.run.name

    @property
    def stages(self) -> tuple[Run, ...]:
        """All runs; the run that learns to talk is the last."""
        return (*self.listening, self.run)

    def described_runs(self) -> tuple[Run, ...]:
        """Return the stages; see `HasRuns`."""
        return self.stages


def run_duplex_study(
    study: DuplexStudy, folder: Path, world: World, progress: Progress | None = None
) -> bool:
    """Make dialogues, train and measure; what exists is kept, but measuring begins anew.

    The folder gets ``dialogues/``, the run, a folder for each run before it, ``abilities.json``, a
    recording of each ability, and the sampling of the measurements, which becomes the model's
    default.

    Args:
        study: The study.
        folder: Folder of the study.
        world: Its only process.
        progress: Shows the progress; on stderr by default.

    Returns:
        False if a signal stopped the training.

    Raises:
        UserError: Something is not installed, or the folder has a study of other dialogues.
    """
    begin = time.perf_counter()
    progress = Progress() if progress is None else progress
    _check_ready(study)
    _check_same(study, folder)
    write_json(folder / SAMPLING, encode(sampling(0)))  # used by default when the model talks
    with closing(progress):
        _make_dialogues(study, folder, progress)
    stages = [
        (_with_data(run, folder), folder if run is study.run else folder / run.name)
        for run in study.stages
    ]
    first, _ = stages[0]
    # The first run has all recordings; the other runs have these or some of them.
    prepare_together(first, study.workers)
    runs = [run for run, _ in stages]
    systems = [sketch(run.system) for run in runs]
    world, threads = settle_threads(systems, [own for _, own in stages], world)
    if threads:
        progress.note(f"computing {threads}")
    with computing(world.num_threads):
        plan = Plan(begin=begin, measuring_s=_trials_s(study, folder))
        budget = find_budget(runs, study.minutes, folder, world, progress, plan)
        if budget is not None:
            stages = [(budget.fit(run), own) for run, own in stages]
            study = replace(study, num_trials=budget.some(study.num_trials))
        result = train_in_turn(stages, world, progress)
    if not result.finished:
        return False
    measure = partial(_measure, study, result.checkpoint, folder)
    with closing(work_in_processes(measure, ABILITIES, study.workers)) as done:
        scores = sorted(done, key=lambda score: ABILITIES.index(score.ability))
    found = {
        "abilities": [asdict(score) for score in scores],
        "budget": encode(budget),
        "seconds_of_last_call": round(time.perf_counter() - begin),
    }
    write_json(folder / "abilities.json", found)
    _show(scores, folder)
    return True


def _check_ready(study: DuplexStudy) -> None:
    """Find what is missing or does not fit before an hour is spent."""
    data = study.run.speech_data
    codec = codec_of(sketch(study.run.system), data.codec)
    DialogueConfig(chunk_s=data.row_s).chunk_frames(codec)
    speaker = Synthesizer()
    for voice in (*study.synthesis.agent_voices, *study.synthesis.user_voices):
        speaker.speak("yes", voice, study.synthesis.sample_rate)


def _scripts(study: DuplexStudy) -> dict[str, list[Script]]:
    """Return the scripts by the name of their folder."""
    return {
        "listening": listening_scripts(study.num_listening),
        "train": order_scripts("train", study.num_train),
        "held_out": order_scripts("held_out", study.num_held_out),
    }


def _check_same(study: DuplexStudy, folder: Path) -> None:
    """Refuse a folder of other dialogues, because its checkpoints have learned from those."""
    scripts = _scripts(study)
    own = {
        "dialogues": {name: len(some) for name, some in scripts.items()},
        "vocab_size": study.vocab_size,
        "synthesis": encode(study.synthesis),
        "listening": [
            [run.name, run.train.num_steps, encode(run.speech_data.hearing)]
            for run in study.listening
        ],
        "scripts": {
            name: digest([script.to_json() for script in some]) for name, some in scripts.items()
        },
    }
    keep_or_check_begun(folder / "study.json", own, "study")


def _make_dialogues(study: DuplexStudy, folder: Path, progress: Progress) -> None:
    """Make the tokeniser and the recordings of all scripts; existing ones are kept."""
    scripts = _scripts(study)
    tokenizer = folder / "words.model"
    if not tokenizer.exists():
        learned = (*scripts["train"], *scripts["listening"])
        texts = [turn.text for script in learned for turn in script.turns]
        train_tokenizer(texts, tokenizer, study.vocab_size)
    voices = Synthesizer(folder / "utterances")
    for name, own in scripts.items():
        synthesize(
            own,
            folder / "dialogues" / name,
            study.synthesis,
            workers=study.workers,
            speaker=voices,
            on_progress=_shown_dialogues(progress, name),
        )
    _join_lists(folder / "dialogues", ("listening", "train"))


def _shown_dialogues(progress: Progress, name: str) -> Callable[[int, int, float], None]:
    """Return a function that shows the progress of a synthesis."""
    task = progress.task(f"making {name} dialogues")

    def show(done: int, total: int, seconds_of_audio: float) -> None:
        task(done, total, f"{spell_duration(seconds_of_audio)} of sound")

    return show


def _join_lists(folder: Path, names: Sequence[str]) -> None:
    """Write one list of the recordings in several folders."""
    records = [
        {**record, "path": f"{name}/{record['path']}"}
        for name in names
        for _, record in read_json_lines(folder / name / LIST_NAME)
    ]
    write_json_lines(folder / LIST_NAME, records)


def _with_data(run: Run, folder: Path) -> Run:
    """Return a run with the study's dialogues and tokeniser; for listening, with all recordings."""
    dialogues = folder / "dialogues"
    heard = run.speech_data.hearing is not None
    data = replace(
        run.speech_data,
        train=str((dialogues if heard else dialogues / "train") / LIST_NAME),
        held_out=str(dialogues / "held_out" / LIST_NAME),
        tokenizer=str(folder / "words.model"),
    )
    return replace(run, data=data)


def _measure(study: DuplexStudy, checkpoint: Path, folder: Path, ability: Ability) -> AbilityScore:
    """Run the trials of one ability in its own process; the first conversation is written."""
    voices = Synthesizer(folder / "utterances")
    agent = load(checkpoint).talker
    trials = order_trials(
        ability,
        study.num_trials,
        voices,
        study.synthesis.user_voices,
        agent.codec.sample_rate,
    )
    tell = Progress(bar=False).task(f"measuring {ability}", "trials")
    outcomes = hold_trials(agent, trials, sampling, lambda done: tell(done, study.num_trials))
    write_audio(folder / f"{ability}.wav", outcomes[0].audio, agent.codec.sample_rate)
    return count_outcomes(outcomes)


def _trials_s(study: DuplexStudy, folder: Path) -> float:
    """Return the seconds of all trials, from a few with a model that has learned nothing."""
    if study.minutes is None or (folder / BUDGET).exists():
        return 0.0
    data = _with_data(study.run, folder).speech_data
    system = build_system(study.run.system, 0).agent_alone()
    talker = Talker(
        system=system,
        codec=codec_of(system, data.codec),
        tokenizer=open_tokenizer(data.tokenizer),
    )
    voices = Synthesizer(folder / "utterances")
    rate = talker.codec.sample_rate
    ability = ABILITIES[0]
    trials = order_trials(ability, _TIMED_TRIALS, voices, study.synthesis.user_voices, rate)
    begin = time.perf_counter()
    with computing(1):  # as in the processes that measure
        hold_trials(talker, trials, sampling, lambda done: None)
    trial_s = (time.perf_counter() - begin) / _TIMED_TRIALS
    return trial_s * len(ABILITIES) * study.num_trials / study.workers


def _show(scores: Sequence[AbilityScore], folder: Path) -> None:
    """Print the table and the paths of the results."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    console = Console(file=sys.stdout, width=width, markup=False, emoji=False)
    console.print(abilities_table(scores))
    for name in ("abilities.json", *(f"{score.ability}.wav" for score in scores)):
        console.print(str(folder / name), highlight=False, soft_wrap=True)
    console.print(f"try: counterpoint talk {folder} --input question.wav --output answer.wav")


def sampling(seed: int) -> FrameSampling:
    """Return how the agent's elements are sampled in the measurements of a duplex study.

    Text is the likeliest id. `PADDING_BIAS` is added to the score of its padding; it was chosen in
    trials with other wordings than those that are measured.

    Args:
        seed: Seed of the audio, which is drawn from the 50 likeliest ids at temperature 0.7.
    """
    audio = Sampling(temperature=0.7, top_k=50, seed=seed)
    return FrameSampling(text=Sampling(temperature=0.0), audio=audio, padding_bias=PADDING_BIAS)

"""A duplex study: dialogues are made, a Moshi learns from them, and is measured in live talk.

Before it talks it listens: its text writes down what the user says, word by word, then sentence by
sentence, which it has to keep in mind. In a dialogue only the few words that decide an answer tell
whether it has understood; here every word does.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from counterpoint.config_json import encode, first_difference
from counterpoint.data.making.orders import listening_scripts, order_scripts
from counterpoint.data.making.scripts import Script
from counterpoint.data.making.synthesis import LIST_NAME, SynthesisConfig, synthesize
from counterpoint.data.speech.dialogues import DialogueConfig
from counterpoint.data.speech.rows import codec_of
from counterpoint.data.speech.words import train_tokenizer
from counterpoint.evaluate.duplex.trials import ABILITIES, Ability, Outcome, order_trials, run_trial
from counterpoint.evaluate.duplex.turns import percentile
from counterpoint.evaluate.statistics import wilson
from counterpoint.recipes.begun import keep_begun, read_begun
from counterpoint.recipes.training import train_run
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.load import load
from counterpoint.runtime.sampler import Sampling
from counterpoint.speech.audio import write_audio
from counterpoint.speech.engines import digest
from counterpoint.speech.voices import Synthesizer
from counterpoint.systems import sketch
from counterpoint.systems.moshi import MoshiConfig
from counterpoint.train.config import FineTuneConfig
from counterpoint.train.distributed import World
from counterpoint.train.run import Run

PADDING_BIAS = 3.75
"""Between values at which pauses (3.5) and orders behind interruptions (4) were missed."""
_SHARES = (0.5, 0.95)
_TELL_EVERY_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplexStudy:
    """One model that learns to answer spoken orders.

    Attributes:
        run: The model and how it learns to talk; its data get the dialogues of the study.
        listening: How the same model learns to listen before; each goes on from the one before it.
        synthesis: How dialogues sound, and who speaks in trials.
        num_listening: Recordings of the user alone; the model listens to these and all dialogues.
        num_train: Dialogues to learn from.
        num_held_out: Dialogues to measure the loss on; other wordings.
        num_trials: Live conversations for each ability.
        vocab_size: Most pieces of the text tokeniser, which learns from the scripts.
        workers: Processes that make dialogues and measure.
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

    def __post_init__(self) -> None:
        if not isinstance(self.run.system, MoshiConfig):
            raise ValueError(
                "A duplex study must train a Moshi on SpeechData: got "
                f"{type(self.run.system).__name__}."
            )
        names = [run.name for run in self.listening]
        if len(set(names)) < len(names) or set(names) & {"dialogues", "utterances", "checkpoints"}:
            raise ValueError(f"Runs of `listening` must have folders of their own: got {names}.")
        for run in self.listening:
            if run.system != self.run.system:
                raise ValueError(f"{run.name!r} must have the `system` of {self.run.name!r}.")
            if run.speech_data.hearing is None:
                raise ValueError(f"`data.hearing` of {run.name!r} must say when: got None.")
        for name in ("num_listening", "num_train", "num_held_out", "num_trials", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1: got {getattr(self, name)}.")
        if not 1 <= self.vocab_size <= self.run.system.text_vocab_size:
            raise ValueError(
                f"`vocab_size` must be 1 to the model's {self.run.system.text_vocab_size} text "
                f"ids: got {self.vocab_size}."
            )
        if not self.synthesis.user_voices:
            raise ValueError("`synthesis.user_voices` must name who speaks in trials: got none.")

    @property
    def name(self) -> str:
        """Names its folder."""
        return self.run.name


def run_duplex_study(study: DuplexStudy, folder: Path, world: World) -> bool:
    """Make, train, measure; what is made and trained already is kept, measuring begins anew.

    The folder gets ``dialogues/``, the run, a folder for each run before it, ``abilities.json`` and
    a recording of each ability.

    Returns:
        False when a signal stopped the training.

    Raises:
        ValueError: Something is not installed, or the folder has a study of other dialogues.
    """
    begin = time.perf_counter()
    _check_ready(study)
    _check_same(study, folder)
    scripts = _scripts(study)
    tokenizer = folder / "words.model"
    if not tokenizer.exists():
        texts = [turn.text for script in scripts["train"] for turn in script.turns]
        texts += [turn.text for script in scripts["listening"] for turn in script.turns]
        train_tokenizer(texts, tokenizer, study.vocab_size)
    voices = Synthesizer(folder / "utterances")
    for name, own in scripts.items():
        synthesize(
            own,
            folder / "dialogues" / name,
            study.synthesis,
            workers=study.workers,
            speaker=voices,
            on_progress=_Progress(f"making {name} dialogues"),
        )
    _join_lists(folder / "dialogues", ("listening", "train"))
    # The first run has all recordings, and others the same or some of them.
    _encode(_with_data((*study.listening, study.run)[0], folder), study.workers)
    before: Path | None = None
    for run in (*study.listening, study.run):
        run_folder = folder if run is study.run else folder / run.name
        result = train_run(_with_data(_begun(run, before), folder), run_folder, world)
        if not result.finished:
            return False
        before = run_folder
    measure = partial(_measure, study, result.checkpoint, folder)
    with _processes(study.workers) as pool:
        rows = list(pool.map(measure, ABILITIES))
    found = {"abilities": rows, "seconds_of_last_call": round(time.perf_counter() - begin)}
    (folder / "abilities.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    _show(rows, folder)
    return True


def _check_ready(study: DuplexStudy) -> None:
    """Find what is missing or does not fit before an hour is spent."""
    with torch.device("meta"):
        model = sketch(study.run.system)
    data = study.run.speech_data
    DialogueConfig(chunk_s=data.row_s).chunk_frames(codec_of(model, data.codec))
    speaker = Synthesizer()
    for voice in (*study.synthesis.agent_voices, *study.synthesis.user_voices):
        speaker.speak("yes", voice, study.synthesis.sample_rate)


def _scripts(study: DuplexStudy) -> dict[str, list[Script]]:
    """What is said, by the name of its folder."""
    return {
        "listening": listening_scripts(study.num_listening),
        "train": order_scripts("train", study.num_train),
        "held_out": order_scripts("held_out", study.num_held_out),
    }


def _check_same(study: DuplexStudy, folder: Path) -> None:
    """Refuse a folder of other dialogues: its checkpoints have learned from those."""
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
    file = folder / "study.json"
    if file.exists():
        changed = first_difference(read_begun(file, own), own, "study")
        if changed is not None:
            raise ValueError(
                f"A study must go on with the dialogues it began with: {folder} has another "
                f"{changed}. Take another folder, or change it back."
            )
        return
    keep_begun(file, own)


def _join_lists(folder: Path, names: Sequence[str]) -> None:
    """One list of the recordings in several folders."""
    records = [
        {**record, "path": f"{name}/{record['path']}"}
        for name in names
        for record in map(json.loads, (folder / name / LIST_NAME).read_text("utf-8").splitlines())
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / LIST_NAME).write_text(text, encoding="utf-8")


def _processes(workers: int) -> ProcessPoolExecutor:
    """Processes that end with this one, also where it is killed."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _encode(run: Run, workers: int) -> None:
    """Encode the recordings of a run, in several processes; what is encoded already is kept."""
    with _processes(workers) as pool:
        list(pool.map(partial(encode_share, run, workers), range(workers)))


def encode_share(run: Run, workers: int, rank: int) -> None:
    """What one of them does; each begins at another recording, and finds what others have made."""
    torch.set_num_threads(1)
    system = sketch(run.system)
    run.data.prepare(system, progress=sys.stderr, rank=rank, world_size=workers)


def _begun(run: Run, before: Path | None) -> Run:
    """A run that goes on from the one before it, if there is one."""
    if before is None:
        return run
    fine_tune = FineTuneConfig(init_from=str(before))
    return replace(run, train=replace(run.train, fine_tune=fine_tune))


def _with_data(run: Run, folder: Path) -> Run:
    """A run with dialogues of the study, and its tokeniser; to listen to are all recordings."""
    dialogues = folder / "dialogues"
    heard = run.speech_data.hearing is not None
    data = replace(
        run.speech_data,
        train=str((dialogues if heard else dialogues / "train") / LIST_NAME),
        held_out=str(dialogues / "held_out" / LIST_NAME),
        tokenizer=str(folder / "words.model"),
    )
    return replace(run, data=data)


def _measure(
    study: DuplexStudy, checkpoint: Path, folder: Path, ability: Ability
) -> dict[str, Any]:
    """One row of the table, in a process of its own; writes the first conversation."""
    torch.set_num_threads(1)
    voices = Synthesizer(folder / "utterances")
    agent = load(checkpoint).talker
    progress = _Progress(f"measuring {ability}")
    outcomes = list[Outcome]()
    trials = order_trials(
        ability,
        study.num_trials,
        voices,
        study.synthesis.user_voices,
        agent.codec.sample_rate,
    )
    for number, trial in enumerate(trials, start=1):
        outcomes.append(run_trial(agent, trial, sampling(seed=number)))
        progress(number, study.num_trials, 0.0)
    write_audio(folder / f"{ability}.wav", outcomes[0].audio, agent.codec.sample_rate)
    latencies = [found for one in outcomes if (found := one.latency_s) is not None]
    stops = [found for one in outcomes if (found := one.stop_s) is not None]
    return {
        "ability": ability,
        "trials": len(outcomes),
        "passed": asdict(wilson(sum(one.passed for one in outcomes), len(outcomes))),
        "text_right": asdict(wilson(sum(one.said_right for one in outcomes), len(outcomes))),
        "latency_s": _percentiles(latencies),
        "stop_s": _percentiles(stops),
        "failures": [_described(one) for one in outcomes if not (one.passed and one.said_right)],
    }


def _percentiles(seconds: Sequence[float]) -> dict[float, float] | None:
    return {share: percentile(seconds, share) for share in _SHARES} if seconds else None


def _described(outcome: Outcome) -> dict[str, Any]:
    trial = outcome.trial
    return {
        "order": trial.order.text,
        "interrupted_by": None if trial.second is None else trial.second.text,
        "agent_said": " ".join(word.text for word in outcome.words),
        "agent_s": [[round(edge, 2) for edge in segment] for segment in outcome.agent],
        "user_s": [[round(edge, 2) for edge in segment] for segment in outcome.turns],
        "passed": outcome.passed,
        "text_right": outcome.said_right,
    }


def _show(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Print the table and where everything lies."""
    from rich.console import Console
    from rich.table import Table

    table = Table("ability", "shown", "text right", "latency p50 / p95", "stops after p50 / p95")
    for row in rows:
        table.add_row(
            f"{row['ability']} ({row['trials']})",
            *(
                f"{row[name]['value']:.0%} [{row[name]['low']:.0%}, {row[name]['high']:.0%}]"
                for name in ("passed", "text_right")
            ),
            *(_seconds(row[name]) for name in ("latency_s", "stop_s")),
        )
    console = Console(
        file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False, emoji=False
    )
    console.print(table)
    for name in ("abilities.json", *(f"{row['ability']}.wav" for row in rows)):
        console.print(str(folder / name), highlight=False, soft_wrap=True)
    console.print(
        f"try: counterpoint talk {folder} --input question.wav --output answer.wav "
        f"--text-temperature 0 --padding-bias {PADDING_BIAS} "
        "--audio-temperature 0.7 --audio-top-k 50"
    )


def _seconds(values: dict[float, float] | None) -> str:
    return "" if values is None else " / ".join(f"{value:.2f} s" for value in values.values())


def sampling(seed: int) -> FrameSampling:
    """How the model talks when it is measured; the bias was chosen on other trials."""
    audio = Sampling(temperature=0.7, top_k=50, seed=seed)
    return FrameSampling(text=Sampling(temperature=0.0), audio=audio, padding_bias=PADDING_BIAS)


class _Progress:
    """Says on stderr how far something is and how long it will take; every ten seconds."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begin = self._told = time.monotonic()

    def __call__(self, done: int, total: int, seconds_of_audio: float) -> None:
        now = time.monotonic()
        if now - self._told < _TELL_EVERY_S and done < total:
            return
        self._told = now
        left = (now - self._begin) / max(done, 1) * (total - done)
        sys.stderr.write(f"{self._what}: {done}/{total}, {left / 60:.1f} min left\n")

"""Spoken dialogues synthesised from scripts: a training set that `read_dialogues` reads.

Each dialogue has three files: ``NAME.wav`` (the agent left, the user right), ``NAME.json`` with the
words of both speakers and the role (``{"alignments", "text_conditions": {"description"}}``), and
``NAME.timeline.jsonl`` with every turn, pause, backchannel and interruption. ``dialogues.jsonl``
lists all dialogues.

Equal scripts, config and engines give equal bytes, whether one process, several processes or a Ray
cluster makes them. A dialogue whose files exist is made again only if its script or the config has
changed.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from counterpoint.data.making.dialogue_layout import lay_out
from counterpoint.data.making.scripts import Script, Turn
from counterpoint.data.making.turn_statistics import TurnStatistics, measure
from counterpoint.data.making.turn_taking import Embellishment, embellish
from counterpoint.data.speech.alignments import AGENT_SPEAKER, USER_SPEAKER
from counterpoint.errors import UserError
from counterpoint.files import read_json, read_json_lines, write_json_lines
from counterpoint.processes import work_in_processes
from counterpoint.ray_tasks import work_on_ray
from counterpoint.speech.audio import inspect_audio, write_audio
from counterpoint.speech.engines import digest
from counterpoint.speech.voices import (
    Speaker,
    Spoken,
    Synthesizer,
    Voice,
    available_voices,
    join_utterances,
)
from counterpoint.streams.timeline import Timeline

LIST_NAME = "dialogues.jsonl"
_VERSION = 1
_BREATH_S = 0.2
_PACE_STEP = 0.05  # paces are few, so that cached utterances can be used again

_Made = tuple[str, float | Exception]

SynthesisProgress = Callable[[int, int, float], None]
"""A function called with the dialogues done, all dialogues, and the seconds of audio done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthesisConfig:
    """How scripts become dialogues.

    Attributes:
        sample_rate: Sample rate of the recordings.
        seed: Seed of voices, paces and everything that a script leaves open.
        agent_voices: Voices from which the agent's is drawn; empty means all installed voices.
        user_voices: Voices of the user, who has another voice than the agent if there is another.
        pace_spread: Largest relative change of each speaker's pace, in steps of 0.05.
        lead_s: Silence before the first turn, in seconds.
        tail_s: Silence after the last turn, in seconds.
        embellishment: Pauses, backchannels and interruptions that are added to scripts.
    """

    sample_rate: int = 16_000
    seed: int = 0
    agent_voices: tuple[Voice, ...] = ()
    user_voices: tuple[Voice, ...] = ()
    pace_spread: float = 0.1
    lead_s: float = 0.5
    tail_s: float = 1.5
    embellishment: Embellishment = field(default_factory=Embellishment)

    def __post_init__(self) -> None:
        if self.sample_rate < 8_000:
            raise UserError(f"`sample_rate` must be >= 8000: got {self.sample_rate}.")
        if not 0 <= self.pace_spread <= 0.5:
            raise UserError(f"`pace_spread` must be 0 to 0.5: got {self.pace_spread}.")
        if not (0 <= self.lead_s < math.inf and 0 <= self.tail_s < math.inf):
            raise UserError(
                f"`lead_s` and `tail_s` must be >= 0: got {self.lead_s} and {self.tail_s}."
            )


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes one dialogue after another.

    Attributes:
        folder: An existing folder.
        config: How scripts become dialogues; its voices must be set.
        speaker: Speech engines that speak the turns.
    """

    folder: Path
    config: SynthesisConfig
    speaker: Speaker

    def attempt(self, script: Script) -> tuple[str, float | Exception]:
        """Return the dialogue's name, and its seconds or the error that prevented it."""
        try:
            return script.name, self.make(script)
        except (ValueError, OSError) as error:
            return script.name, error

    def make(self, script: Script) -> float:
        """Write the files of one dialogue if they do not exist, and return its seconds.

        Raises:
            UserError: Something in it cannot be said.
            OSError: A file cannot be written.
        """
        source = digest(_VERSION, script.to_json(), asdict(self.config))
        audio_file = self.folder / f"{script.name}.wav"
        words_file = audio_file.with_suffix(".json")
        timeline_file = audio_file.with_suffix(".timeline.jsonl")
        if _source(words_file) == source and audio_file.exists() and timeline_file.exists():
            return inspect_audio(audio_file).duration_s
        words_file.unlink(missing_ok=True)
        with _one_thread():
            audio, timeline = self._lay_out(script)
        write_audio(audio_file, audio, self.config.sample_rate)
        timeline.write(timeline_file)
        record: dict[str, Any] = {"alignments": _alignments(timeline)}
        if script.role is not None:
            record["text_conditions"] = {"description": script.role}
        record["source"] = source
        write_json_lines(words_file, [record])
        return audio.shape[1] / self.config.sample_rate

    def _lay_out(self, script: Script) -> tuple[torch.Tensor, Timeline]:
        config = self.config
        voices = cast_voices(script.name, config)
        full = embellish(script, config.embellishment, config.seed)
        spoken = [self._said(script, turn, voices[turn.speaker]) for turn in full.turns]
        header = {
            "name": script.name,
            "role": script.role,
            "seed": config.seed,
            "sample_rate": config.sample_rate,
            "voices": {speaker: asdict(voice) for speaker, voice in voices.items()},
        }
        return lay_out(
            full,
            spoken,
            sample_rate=config.sample_rate,
            seed=config.seed,
            lead_s=config.lead_s,
            tail_s=config.tail_s,
            header=header,
        )

    def _said(self, script: Script, turn: Turn, voice: Voice) -> Spoken:
        """Speak a turn with its breaths; an error names the turn."""
        rate = self.config.sample_rate
        try:
            phrases = [self.speaker.speak(phrase, voice, rate) for phrase in turn.phrases]
        except UserError as error:
            texts = [own.text for own in script.turns]
            number = f"turn {texts.index(turn.text)}" if turn.text in texts else "an added turn"
            raise UserError(f"Script {script.name!r}, {number}: {error}") from error
        return join_utterances(phrases, round(_BREATH_S * rate), rate)


def cast_voices(name: str, config: SynthesisConfig) -> dict[str, Voice]:
    """Return the voices of "agent" and "user" in the dialogue of that name."""
    rng = Random(f"{config.seed}/{name}/voices")
    agent = rng.choice(config.agent_voices)
    others = [voice for voice in config.user_voices if voice != agent]
    voices = {"agent": agent, "user": rng.choice(others or config.user_voices)}
    steps = int(config.pace_spread / _PACE_STEP + 1e-9)
    return {
        speaker: replace(voice, pace=round(voice.pace + rng.randint(-steps, steps) * _PACE_STEP, 6))
        for speaker, voice in voices.items()
    }


def synthesize(
    scripts: Sequence[Script],
    folder: str | Path,
    config: SynthesisConfig | None = None,
    *,
    workers: int | None = None,
    ray: str | None = None,
    speaker: Speaker | None = None,
    on_progress: SynthesisProgress | None = None,
) -> Path:
    """Synthesise spoken dialogues from scripts.

    Args:
        scripts: Scripts with different names.
        folder: Folder of the dialogues; on Ray, all machines must see it.
        config: How scripts become dialogues.
        workers: Number of processes that speak at the same time; by default this process alone, or
            on Ray one for each core of the cluster.
        ray: Address of a Ray cluster on which they run; see `counterpoint.ray_tasks.work_on_ray`.
        speaker: Speech engines; by default the installed ones, with utterances cached below
            ``folder``.
        on_progress: Called after each dialogue.

    Returns:
        The list of all dialogues, for `read_dialogues`; it is written when all of them exist.

    Raises:
        UserError: No engine is installed, names are not different, or a script cannot be said.
        OSError: A file cannot be written.
    """
    names = [script.name for script in scripts]
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"Scripts must have different names, at least one: got {len(set(names))} names in "
            f"{len(names)} scripts."
        )
    if workers is not None and workers < 1:
        raise UserError(f"`workers` must be >= 1: got {workers}.")
    config = _with_voices(config or SynthesisConfig())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    speaker = speaker or Synthesizer(folder / "utterances")
    maker = Maker(folder=folder.absolute(), config=config, speaker=speaker)
    durations = dict[str, float]()
    total_s = 0.0
    # It is closed at the end of the block, so that an error or an interruption ends the processes.
    with closing(_made(maker, scripts, workers, ray)) as results:
        for name, made in results:
            if isinstance(made, Exception):
                raise made
            durations[name] = made
            total_s += made
            if on_progress is not None:
                on_progress(len(durations), len(scripts), total_s)
    write_json_lines(
        folder / LIST_NAME,
        [{"path": f"{name}.wav", "duration": durations[name]} for name in names],
    )
    return folder / LIST_NAME


def _made(
    maker: Maker, scripts: Sequence[Script], workers: int | None, ray: str | None
) -> Generator[_Made, None, None]:
    """Yield the result of every script, in the order in which they are done."""
    if ray is not None:
        yield from work_on_ray(maker.attempt, scripts, ray, num_workers=workers)
    elif workers is not None and workers > 1:
        yield from work_in_processes(maker.attempt, scripts, workers)
    else:
        yield from map(maker.attempt, scripts)


def measure_set(list_file: str | Path) -> TurnStatistics:
    """Compute the statistics of a set that `synthesize` made."""
    list_file = Path(list_file)
    return measure(
        (
            record["duration"],
            Timeline.read((list_file.parent / record["path"]).with_suffix(".timeline.jsonl")),
        )
        for _, record in read_json_lines(list_file)
    )


def _with_voices(config: SynthesisConfig) -> SynthesisConfig:
    if config.agent_voices and config.user_voices:
        return config
    installed = available_voices()
    if not installed:
        raise UserError(
            "Speech needs an engine: pip install 'counterpoint[voices]', or apt-get install flite."
        )
    return replace(
        config,
        agent_voices=config.agent_voices or installed,
        user_voices=config.user_voices or installed,
    )


def _alignments(timeline: Timeline) -> list[list[Any]]:
    speakers = {"agent": AGENT_SPEAKER, "user": USER_SPEAKER}
    return [
        [word.text, [word.start_s, word.end_s], speakers[word.stream]]
        for word in timeline.where(kind="word")
    ]


def _source(file: Path) -> str | None:
    try:
        record = read_json(file)
    except (OSError, ValueError):
        return None
    return record.get("source") if isinstance(record, dict) else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: sums depend on the number of threads, and processes share cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

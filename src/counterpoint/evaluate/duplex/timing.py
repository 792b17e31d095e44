"""The delay with which a model speaks on held-out recordings, measured during training.

The timing of fine-tuned models can get worse before their loss shows it: they answer late, or no
longer greet (kyutai-labs/moshi-finetune, issue 12). The measure is defined as follows:

- A *moment* is the beginning of a recording (a greeting may be due), or the end of a turn of the
  user that the recorded agent answers (a response is due). Turns are those of
  `counterpoint.evaluate.duplex.turns`, found in the sound.
- Before a moment the model reads what both speakers said in the recording, at most `context_s` of
  it. From then on it continues alone for `horizon_s`: it hears the recorded user and says what it
  samples.
- It *speaks* in the first frame whose text holds a part of a word: an id that is neither padding
    nor
  the end of padding. Its delay is the time from the moment to that frame. The same rule, applied to
  the text of the recording, gives the delay of the recorded agent.
- The results are the share of moments at which it speaks at all, and the median delay of those, for
  greetings and for responses, each together with that of the recordings. A model that predicts both
  speakers is given the recorded user from the second frame on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple, cast

from jaxtyping import Int
from torch import Tensor, nn

from counterpoint.data.speech.dialogues import (
    Dialogue,
    DialogueConfig,
    DialogueExamples,
    Example,
    encode_dialogues,
    read_dialogues,
)
from counterpoint.data.speech.monologue import EPAD_ID
from counterpoint.data.speech.rows import SpeechData, codec_of
from counterpoint.data.speech.words import open_tokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.turns import (
    ConversationRule,
    find_answers,
    measure_levels,
    speech_segments,
)
from counterpoint.evaluate.units import spread_places
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions
from counterpoint.speech.audio import audio_blocks
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Ticks
from counterpoint.systems.contract import System

_RATE = 16_000

Due = Literal["greeting", "response"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TimingConfig:
    """Moments at which a model is measured.

    Attributes:
        moments: Largest number of moments of each kind, spread evenly over the held-out recordings;
            0 measures nothing.
        context_s: Largest number of seconds of the recording that are read before a moment.
        horizon_s: Seconds for which the model continues alone.
        rows: Number of moments that are measured at the same time; each needs a session.
        seed: Seed of the sampling.
    """

    moments: int = 16
    context_s: float = 20.0
    horizon_s: float = 4.0
    rows: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.moments < 0 or self.rows < 1:
            raise UserError(
                f"`moments` must be >= 0 and `rows` >= 1: got {self.moments} and {self.rows}."
            )
        if not (self.context_s > 0 and self.horizon_s > 0):
            raise UserError(
                "`context_s` and `horizon_s` must be above 0: got "
                f"{self.context_s} and {self.horizon_s}."
            )


class TimingMoment(NamedTuple):
    """A moment at which somebody should speak.

    Attributes:
        due: Kind of the speech that is due: a greeting or a response.
        example: Frames around it.
        frame: Frame of the example from which the model continues alone.
    """

    due: Due
    example: Example
    frame: int


class Timing:
    """Measures a system at the moments of held-out recordings.

    Args:
        data: Data whose held-out recordings are used.
        system: The system that reads them.
        config: Choice of the moments.

    Attributes:
        moments: All moments that are measured; recordings without known words have none.

    Raises:
        UserError: A recording cannot be used.
        OSError: The cache of codes cannot be written.
    """

    def __init__(self, data: SpeechData, system: System, config: TimingConfig) -> None:
        self._config = config
        self._layout: Layout = system.layout
        codec = codec_of(system, data.codec)
        self._rate_hz = codec.frame_rate_hz
        dialogues = read_dialogues(data.held_out)
        how = DialogueConfig(chunk_s=data.row_s, cache_folder=data.cache_folder)
        examples = DialogueExamples(
            dialogues,
            encode_dialogues(dialogues, codec, how),
            open_tokenizer(data.tokenizer).encode_word,
            pad_id=self._layout.text.padding_id or 0,
            word_starts=data.word_starts,
        )
        self._horizon = max(round(config.horizon_s * self._rate_hz), 1)
        self._context = max(round(config.context_s * self._rate_hz), 1)
        self._context = min(self._context, max(system.window_ticks - self._horizon - 1, 1))
        known = [example for example in examples if (example.streams["text"] != UNSET_ID).all()]
        turn_ends = {str(dialogue.audio): _turn_ends(dialogue) for dialogue in dialogues}
        self.moments = self._spread(self._greetings(known))
        self.moments += self._spread(self._responses(known, turn_ends))

    def _spread(self, moments: Sequence[TimingMoment]) -> list[TimingMoment]:
        return [moments[place] for place in spread_places(len(moments), self._config.moments)]

    def _greetings(self, examples: Sequence[Example]) -> list[TimingMoment]:
        first = [example for example in examples if example.first_frame == 0]
        return [TimingMoment("greeting", each, 0) for each in first if self._has_room(each, 0)]

    def _responses(
        self, examples: Sequence[Example], turn_ends: dict[str, list[float]]
    ) -> list[TimingMoment]:
        found = []
        for example in examples:
            for end_s in turn_ends[example.source]:
                frame = round(end_s * self._rate_hz) - example.first_frame
                if frame > 0 and self._has_room(example, frame):
                    found.append(TimingMoment("response", example, frame))
        return found

    def _has_room(self, example: Example, frame: int) -> bool:
        return frame + self._horizon + 1 <= len(example.streams["text"])

    def __call__(self, system: nn.Module) -> dict[str, float]:
        """Return shares and median delays in seconds; values that are not known are left out.

        Args:
            system: The system in evaluation mode, under the autocast of its training.
        """
        model = cast("System", system)
        frames = list[int | None]()
        rows = self._config.rows
        for first in range(0, len(self.moments), rows):
            frames += self._frames_until_speech(model, self.moments[first : first + rows])
        measured: dict[str, float] = {}
        for due in ("greeting", "response"):
            own = [at for moment, at in zip(self.moments, frames, strict=True) if moment.due == due]
            recorded = [self._recorded(moment) for moment in self.moments if moment.due == due]
            measured |= self._numbers(due, own) | self._numbers(f"{due}_recorded", recorded)
        return measured

    def _numbers(self, name: str, frames: Sequence[int | None]) -> dict[str, float]:
        if not frames:
            return {}
        delays_s = [frame / self._rate_hz for frame in frames if frame is not None]
        share = {f"{name}_share": len(delays_s) / len(frames)}
        return share | ({f"{name}_s": median(delays_s)} if delays_s else {})

    def _recorded(self, moment: TimingMoment) -> int | None:
        text = moment.example.streams["text"]
        return self._first_word(text[moment.frame : moment.frame + self._horizon].tolist())

    def _first_word(self, text: Sequence[int]) -> int | None:
        silent = (self._layout.text.padding_id, EPAD_ID, UNSET_ID)
        return next((place for place, token in enumerate(text) if token not in silent), None)

    def _frames_until_speech(
        self, system: System, moments: Sequence[TimingMoment]
    ) -> list[int | None]:
        """Return the frames from each moment to the model's first word; ``None`` without a word."""
        sessions = Sessions(system, len(moments))
        text = self._layout.text.name
        said: list[list[int]] = [[] for _ in moments]
        for row, moment in enumerate(moments):
            seed = self._config.seed + row
            sampling = FrameSampling(
                text=Sampling(temperature=0.7, top_k=25, seed=seed),
                audio=Sampling(temperature=0.8, top_k=250, seed=seed),
            )
            session = sessions.start(row, sampling, prompt=self._prompt(moment))
            if session.opening is not None:
                said[row].append(int(session.opening[text]))
        for step in range(self._horizon):
            heard = {row: self._heard(moment, step) for row, moment in enumerate(moments)}
            for row, frame in sessions.step(heard).items():
                said[row].append(int(frame[text]))
        return [self._first_word(own[: self._horizon]) for own in said]

    def _prompt(self, moment: TimingMoment) -> Ticks | None:
        if not moment.frame:
            return None
        streams = moment.example.streams
        part = slice(max(moment.frame - self._context, 0), moment.frame)
        return {
            self._layout.text.name: streams["text"][None, part],
            **self._layout.with_role(Role.SPOKEN, streams["agent"][None, part]),
            **self._layout.with_role(Role.HEARD, streams["user"][None, part]),
        }

    def _heard(self, moment: TimingMoment, step: int) -> dict[str, Int[Tensor, " K"]]:
        """Return the recorded user: the frame heard now, or the next if the user is predicted."""
        user = moment.example.streams["user"]
        now = self._layout.with_role(Role.HEARD, user[None, moment.frame + step])
        then = self._layout.with_role(Role.HEARD, user[None, moment.frame + step + 1])
        predicted = {stream.name for stream in self._layout.predicted}
        return {name: (then if name in predicted else now)[name][0] for name in now}


def _turn_ends(dialogue: Dialogue) -> list[float]:
    """Return the ends of those turns of the user that the recorded agent answers, in seconds."""
    rule = ConversationRule()
    levels = measure_levels(audio_blocks(dialogue.audio, _RATE, 2), _RATE)
    agent, user = (
        speech_segments(channel, levels.duration_s, rule) for channel in levels.loudness_db
    )
    return [
        answer.turn.end_s
        for answer in find_answers(agent, user, rule)
        if answer.latency_s is not None and answer.latency_s >= 0
    ]

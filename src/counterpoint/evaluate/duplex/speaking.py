"""Speaking given texts while listening: many rows at once, frame by frame, as live.

A model that can be interrupted has an id in its first codebook that stops it. Here that id is never
taken: its probability is recorded in every frame instead, so that one pass gives the stop scores
for all thresholds (`counterpoint.evaluate.duplex.interruptions`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.interruptions import StopScores
from counterpoint.runtime.sampler import Sampling, row_samplings, sample, seed_hashes, uniform
from counterpoint.speech.codec import Codec
from counterpoint.speech.mels import LogMels
from counterpoint.streams import schedule
from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.contract import System

PUBLISHED = Sampling(temperature=1.0, top_p=0.99)
"""Sampling of LSLM (arXiv:2408.02622), section 5.2."""


class ToSpeak(NamedTuple):
    """What one row speaks and hears.

    Attributes:
        prompt: Content of the prompt, which holds the text.
        heard: What others sound like at 16 kHz from the first frame of the speech on; or, if no row
            has an echo, the features of that sound, on any device. Afterwards it is silent.
        echo_gain: Factor of the own voice in what is heard; 0 for no echo.
        echo_delay_s: Delay of the echo.
        seed: Seed of the sampling.
    """

    prompt: Ticks
    heard: Float[Tensor, " _N"] | Float[Tensor, "_T _F"]
    echo_gain: float = 0.0
    echo_delay_s: float = 0.0
    seed: int = 0


class Spoke(NamedTuple):
    """What one row has said.

    Attributes:
        codes: Frames that were said.
        ended: Whether the speech came to its end by itself.
        stops: Probability of the id that stops the speech, at the start of each frame.
        drawn_s: Time at which the stop would have been sampled; ``None`` if it never would.
    """

    codes: Int[Tensor, "_T K"]
    ended: bool
    stops: StopScores
    drawn_s: float | None


class TrialSpeaker(NamedTuple):
    """A model with everything that it needs to speak and to hear.

    Attributes:
        system: The model; its streams must have no delays.
        codec: Codec of what it says.
        mels: Features of what it hears.
        end_id: Id of the first codebook after the last frame.
        stop_id: Id of the first codebook that stops the speech.
    """

    system: System
    codec: Codec
    mels: LogMels
    end_id: int
    stop_id: int


@torch.no_grad()
def speak_and_listen(
    speaker: TrialSpeaker,
    rows: Sequence[ToSpeak],
    longest_s: float,
    sampling: Sampling = PUBLISHED,
) -> list[Spoke]:
    """Let a model speak several texts at once while it hears.

    Args:
        speaker: The model.
        rows: What each row speaks and hears.
        longest_s: Time after which a row is cut off.
        sampling: How codes are chosen; each row has its own seed.

    Raises:
        UserError: Streams of the model have delays.
    """
    system = speaker.system
    layout = system.layout
    if schedule.kept_distances(layout) != range(-1, 1):
        raise UserError(
            "A model that speaks texts in trials must have streams without delays: these have "
            f"{', '.join(f'{s.name} {s.delay_ticks}' for s in layout.streams)}."
        )
    microphone = _Microphone(speaker, rows) if _echoes(rows) else _Ear(speaker, rows)
    choices = _Choices(speaker, rows, sampling)
    hidden, state = _read_prompts(system, [row.prompt for row in rows])
    said = []
    for tick in range(round(longest_s * speaker.codec.frame_rate_hz)):
        own = state if system.writes_with_tower else None
        frame = system.write(hidden, choices.of(tick), own)
        codes = torch.cat([frame[stream.name] for stream in layout.by_role(Role.SPOKEN)], -1)
        said.append(codes)
        choices.ended |= codes[:, 0] == speaker.end_id
        if choices.ended.all():
            break
        given = {name: ids[:, None] for name, ids in frame.items()}
        padding = layout.text.padding_id or 0
        given[layout.text.name] = torch.full((len(rows), 1), padding, device=system.device)
        (heard,) = layout.by_role(Role.HEARD)
        given[heard.name] = microphone.hear(codes, choices.ended)
        steps, state = system.read(given, state)
        hidden = steps[:, -1]
    return choices.results(torch.stack(said, 1))


def _read_prompts(system: System, prompts: Sequence[Ticks]) -> tuple[Tensor, Any]:
    """Read the initial frame and the prompts, and return what the first frame is written from."""
    columns = []
    for prompt in prompts:
        num_ticks = schedule.count_ticks(system.layout, prompt)
        num_read = schedule.next_column(system.layout, num_ticks)
        arrived = schedule.columns(system.layout, prompt)
        columns.append({name: ids[:, :num_read] for name, ids in arrived.items()})
    device = system.device
    lengths = torch.tensor([next(iter(one.values())).shape[1] for one in columns], device=device)
    longest = int(lengths.max())
    ticks = {
        name: torch.cat([_filled(one[name], longest) for one in columns]).to(device)
        for name in columns[0]
    }
    hidden, state = system.read(ticks, system.initial_state(len(columns)), lengths)
    return hidden[torch.arange(len(columns), device=device), lengths - 1], state


def _filled(values: Tensor, num_ticks: int) -> Tensor:
    missing = num_ticks - values.shape[1]
    return F.pad(values, (*[0, 0] * (values.ndim - 2), 0, missing))


class _Choices:
    """Chooses the codes of all rows, and records the probability of the stop."""

    def __init__(self, speaker: TrialSpeaker, rows: Sequence[ToSpeak], sampling: Sampling) -> None:
        device = speaker.system.device
        self._speaker = speaker
        self._rows = row_samplings([sampling] * len(rows), device)
        self._hashes = seed_hashes([row.seed for row in rows], device)
        self._top_p = sampling.top_p
        self._drawn = 0
        self._stops = list[Tensor]()
        self._would_stop = list[Tensor]()
        self.ended = torch.zeros(len(rows), dtype=torch.bool, device=device)

    def of(self, tick: int) -> Any:
        """Return the function that chooses the elements of a frame."""
        first = True

        def choose(stream: str, codebook: int, scores: Tensor) -> Tensor:
            nonlocal first
            if first:
                scores = self._without_stop(scores)
                first = False
            return sample(scores, self._rows, self._number())

        return choose

    def _number(self) -> Float[Tensor, " B"]:
        self._drawn += 1
        return uniform(self._hashes, torch.tensor(self._drawn, device=self._hashes.device))

    def _without_stop(self, scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        stop_id = self._speaker.stop_id
        likelihood = torch.softmax(scores.double(), -1)
        own = likelihood[:, stop_id]
        likelier = (likelihood * (likelihood > own[:, None])).sum(-1)
        kept = own * (likelier < self._top_p)
        self._stops.append(own.float())
        self._would_stop.append(self._number() < kept)
        scores = scores.clone()
        scores[:, stop_id] = -torch.inf
        return scores

    def results(self, codes: Int[Tensor, "B T K"]) -> list[Spoke]:
        """Return what each row has said."""
        frame_s = 1 / self._speaker.codec.frame_rate_hz
        codes = codes.cpu()
        stops = torch.stack(self._stops, 1).cpu()
        would_stop = torch.stack(self._would_stop, 1).cpu()
        found = []
        for row, own in enumerate(codes):
            ends = (own[:, 0] == self._speaker.end_id).nonzero()[:, 0]
            length = int(ends[0]) if len(ends) else len(own)
            times_s = frame_s * torch.arange(length)
            drawn = would_stop[row, :length].nonzero()[:, 0]
            found.append(
                Spoke(
                    codes=own[:length],
                    ended=len(ends) > 0,
                    stops=StopScores(times_s, stops[row, :length]),
                    drawn_s=frame_s * int(drawn[0]) if len(drawn) else None,
                )
            )
        return found


def _echoes(rows: Sequence[ToSpeak]) -> bool:
    """Return whether what a row hears depends on what it says.

    Raises:
        UserError: A row with an echo is given features instead of a sound.
    """
    echoes = any(row.echo_gain for row in rows)
    if echoes and any(row.heard.ndim > 1 for row in rows):
        raise UserError("Rows with an echo must be given what is heard as a sound: got features.")
    return echoes


class _Ear:
    """Hears what does not depend on what is said, so all features are known before."""

    def __init__(self, speaker: TrialSpeaker, rows: Sequence[ToSpeak]) -> None:
        # The silence after a sound still hears its end, because windows overlap.
        silence = speaker.mels.frame_samples
        features = [
            row.heard
            if row.heard.ndim > 1
            else speaker.mels.encode(F.pad(row.heard, (0, silence))[None].clamp(-1, 1))[0]
            for row in rows
        ]
        longest = max(len(one) for one in features)
        self._device = speaker.system.device
        self._features = torch.stack([_padded(one, longest) for one in features]).to(self._device)
        self._now = 0

    def hear(self, codes: Int[Tensor, "B K"], ended: Tensor) -> Float[Tensor, "B 1 F"]:
        """Return the features of the next frame."""
        self._now += 1
        if self._now > self._features.shape[1]:
            return torch.zeros_like(self._features[:, :1], dtype=torch.float32)
        return self._features[:, self._now - 1 : self._now].float()


def _padded(features: Float[Tensor, "T F"], num_frames: int) -> Float[Tensor, "T2 F"]:
    return F.pad(features, (0, 0, 0, num_frames - len(features)))


class _Microphone:
    """Mixes what others say with an echo of what the rows say, and computes its features."""

    def __init__(self, speaker: TrialSpeaker, rows: Sequence[ToSpeak]) -> None:
        self._speaker = speaker
        self._rows = rows
        self._past = speaker.mels.initial_past(len(rows))
        self._decoder = speaker.codec.decoder(len(rows))
        self._own = [torch.zeros(0)] * len(rows)
        self._now = 0

    def hear(self, codes: Int[Tensor, "B K"], ended: Tensor) -> Float[Tensor, "B 1 F"]:
        """Return the features of the next frame, in which ``codes`` sound."""
        size = self._speaker.mels.frame_samples
        mixed = torch.zeros(len(self._rows), size)
        for number, row in enumerate(self._rows):
            piece = row.heard[self._now : self._now + size]
            mixed[number, : len(piece)] = piece
            if row.echo_gain:
                self._play(number, codes[number].cpu(), silent=bool(ended[number]))
                mixed[number] += row.echo_gain * self._echo(number, row.echo_delay_s)
        self._now += size
        features, self._past = self._speaker.mels.extend(mixed.clamp(-1, 1), self._past)
        return features.to(codes.device)

    def _play(self, number: int, codes: Int[Tensor, " K"], *, silent: bool) -> None:
        size = self._speaker.mels.frame_samples
        sound = torch.zeros(size)
        if not silent:
            own = self._decoder.push({number: codes[None]})[number]
            # Each frame is stretched alone, since frames come one by one.
            sound = F.interpolate(own[None, None], size, mode="linear")[0, 0]
        self._own[number] = torch.cat((self._own[number], sound))

    def _echo(self, number: int, delay_s: float) -> Float[Tensor, " N"]:
        size = self._speaker.mels.frame_samples
        late = round(delay_s * self._speaker.mels.sample_rate)
        own = F.pad(self._own[number], (late, 0))
        return own[self._now : self._now + size]

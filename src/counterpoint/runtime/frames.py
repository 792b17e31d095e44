"""Frame sessions: rows that hear one frame at a time and say the next one.

A frame is said while it is heard, so a session is a loop at the rate of the frames. Everything is
kept by *column*, the place in the order of arrival: column 0 is the initial frame, and content
frame f of a stream stands in column f + 1 + its delay. A step reads one column of a row and writes
the next one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.runtime.sampler import RowSamplings, Sampling, row_samplings, sample
from counterpoint.streams.spec import Stream, Ticks
from counterpoint.systems.contract import State
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.moshi_streams import TEXT

_OPEN = -2  # what is still to be said; `UNSET_ID` is nothing, for good

Codes = Tensor | Sequence[int] | int
"""Ids of one frame of a stream: one for the text, one for each codebook of an audio stream."""

Frame = dict[str, Int[Tensor, " K"]]
"""Ids of one frame by stream, for each codebook one; the text has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSampling:
    """How one session chooses text and audio; by default as the published Moshi does.

    The two may have the same seed: no random number is used twice.

    Attributes:
        text: For the text stream.
        audio: For every codebook.
    """

    text: Sampling = Sampling(temperature=0.7, top_k=25)
    audio: Sampling = Sampling(temperature=0.8, top_k=250)


@dataclass(kw_only=True, slots=True)
class FrameSession:
    """What one row does and has done; read it, and leave the writing to `FrameSessions`.

    Attributes:
        sampling: How its ids are chosen.
        num_prompt: Content frames of its prompt.
        num_heard: Content frames it has heard, those of the prompt included.
    """

    sampling: FrameSampling
    num_prompt: int = 0
    num_heard: int = 0


class FrameSessions:
    """A batch of sessions over one model: `start` a row, then `step` with the frames it hears.

    The model says the streams that it predicts and hears the others. A model that predicts both
    speakers talks with itself; for a live user, give it `trimmed` to what the agent says.

    With f frames heard, a session has written column f + 1: a step that hears frame f returns what
    is said in frame f + 1 - m, for m the longest delay of a stream that is said. With Moshi's one
    frame of delay what is said in a frame is complete when that frame has been heard.

    Rows share nothing but the computation. What a row gives depends on what it hears and on its
    sampling alone, bit for bit, whatever the other rows do; a prompt runs by itself.

    Args:
        system: The model.
        num_rows: Sessions at a time.

    Source: section 3.4 of Moshi (arXiv:2410.00037), the schedule of the reference implementation.
    Where a stream has not begun, the elements of the frame behind it see its initial id as in
    training; in the reference they see a sampled id that is then dropped.
    """

    def __init__(self, system: Moshi, num_rows: int) -> None:
        if num_rows < 1:
            raise ValueError(f"`num_rows` must be >= 1, got {num_rows}.")
        self.system = system
        self.state: State = system.initial_state(num_rows)
        streams = system.layout.streams
        said = {TEXT, *(stream.name for stream in system.predicted)}
        self._said = tuple(stream for stream in streams if stream.name in said)
        self._heard = tuple(stream for stream in streams if stream.name not in said)
        self._latest_said = max(stream.delay_ticks for stream in self._said)
        latest = max(stream.delay_ticks for stream in streams)
        # From the oldest column of the frame that is complete to the newest that can be given.
        self._num_slots = 2 * latest + 2
        ends = accumulate(stream.depth for stream in self._said)
        # Place of each stream's first element among the random numbers of a frame.
        self._place = {s.name: end - s.depth for s, end in zip(self._said, ends, strict=True)}
        self._num_places = sum(stream.depth for stream in self._said)
        self._device = system.head.weight.device
        self._ids = {
            stream.name: torch.full(
                (num_rows, self._num_slots, stream.depth), _OPEN, device=self._device
            )
            for stream in streams
        }
        self._rows: list[FrameSession | None] = [None] * num_rows
        self._samplings: tuple[RowSamplings, RowSamplings] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> FrameSession:
        session = self._rows[row] if 0 <= row < len(self._rows) else None
        if session is None:
            raise ValueError(
                f"Row {row} must have been started: this batch has the rows 0 to "
                f"{len(self._rows) - 1}. Call `start` first."
            )
        return session

    @property
    def running(self) -> list[int]:
        """Rows that have been started and not stopped."""
        return [i for i, session in enumerate(self._rows) if session]

    @torch.no_grad()
    def start(
        self, row: int, sampling: FrameSampling | None = None, *, prompt: Ticks | None = None
    ) -> Frame | None:
        """Begin a new session in a row, whatever was there before.

        The model reads the initial frame and the prompt in one pass and writes the next column.

        Args:
            row: Which row.
            sampling: How its ids are chosen; by default `FrameSampling()`.
            prompt: What all streams said before, one row in content order: text (1, P), audio
                (1, P, K). `UNSET_ID` is read as nothing.

        Returns:
            As in `step`: only without any delay the first frame is complete at once.
        """
        if not 0 <= row < len(self._rows):
            raise ValueError(f"`row` must be 0 to {len(self._rows) - 1}: got {row}.")
        system = self.system
        first = system.initial_frame(1)
        if prompt is None:
            prompt = {name: ids[:, :0] for name, ids in first.items()}
        if TEXT in prompt and len(prompt[TEXT]) != 1:
            raise ValueError(f"A prompt must be one row: got {len(prompt[TEXT])}.")
        # Late streams go on with the prompt where the others go on with the session.
        begun = system.frames(prompt)
        num_prompt = prompt[TEXT].shape[1]
        for name, kept in self._ids.items():
            late = self.system.layout[name].delay_ticks
            rest = begun[name][0, num_prompt + 1 : num_prompt + 1 + late].to(self._device)
            slot = torch.arange(len(rest), device=self._device) + num_prompt + 1
            kept[row] = _OPEN
            kept[row, slot % self._num_slots] = rest.view(len(rest), kept.shape[2])
        sampling = sampling or FrameSampling()
        self._rows[row] = FrameSession(
            sampling=sampling, num_prompt=num_prompt, num_heard=num_prompt
        )
        self._samplings = None
        read = {name: ids[:, : num_prompt + 1].to(self._device) for name, ids in begun.items()}
        z, state = system.read(read, system.initial_state(1))
        for mine, new in zip(_tensors(self.state), _tensors(state), strict=True):
            mine[row] = new[0]
        self._write([row], [row], z[:, -1])
        return self._complete([row]).get(row)

    def stop(self, row: int) -> None:
        """End the session of a row."""
        self[row]
        self._rows[row] = None

    @torch.no_grad()
    def step(self, given: Mapping[int, Mapping[str, Codes]]) -> dict[int, Frame]:
        """Let some rows hear a frame and say the next one; the others pause.

        Args:
            given: By row, the ids of this content frame of every stream that is heard. Ids of a
                stream that is said force it: they are those of its next content frame.

        Returns:
            What is said in the frame that is complete now, by row; nothing for a row whose first
            frame is not complete yet.

        Raises:
            ValueError: A row is not running, a stream is missing or unknown, or ids do not fit.
        """
        codes = {row: self._parsed(row, given[row]) for row in sorted(given)}
        rows, every = list(codes), range(len(self._rows))
        if not rows:
            return {}
        self._keep(codes)
        column = self._columns(every)
        index = torch.arange(len(every), device=self._device)
        frames = {}
        for name, kept in self._ids.items():
            ids = kept[index, column % self._num_slots][:, None]
            frames[name] = ids[..., 0] if name == TEXT else ids
        lengths = torch.zeros_like(column)
        lengths[rows] = 1
        z, self.state = self.system.read(frames, self.state, lengths)
        for row in rows:
            self[row].num_heard += 1
        self._write(rows, every, z[:, 0])
        return self._complete(rows)

    def _keep(self, codes: Mapping[int, Mapping[str, list[int]]]) -> None:
        """Put what rows are given into the columns where it stands."""
        for name, kept in self._ids.items():
            rows = [row for row in codes if name in codes[row]]
            if rows:
                stream = self.system.layout[name]
                ahead = 1 + stream.delay_ticks + (stream in self._said)
                slots = [(self[row].num_heard + ahead) % self._num_slots for row in rows]
                kept[rows, slots] = torch.tensor(
                    [codes[row][name] for row in rows], device=self._device
                )

    def _columns(self, rows: Sequence[int]) -> Int[Tensor, " n"]:
        """Newest column that each row has written."""
        heard = [session.num_heard if (session := self._rows[row]) else 0 for row in rows]
        return torch.tensor(heard, device=self._device) + 1

    def _write(self, rows: Sequence[int], computed: Sequence[int], z: Float[Tensor, "n D"]) -> None:
        """Write the newest column of some rows; others may be computed, so that shapes stay."""
        column, index = self._columns(computed), torch.tensor(computed, device=self._device)
        slot = column % self._num_slots
        text, audio = (RowSamplings(*(x[index] for x in part)) for part in self._settings())

        def choose(name: str, codebook: int, logits: Tensor) -> Tensor:
            given = self._ids[name][index, slot, codebook]
            count = column * self._num_places + self._place[name] + codebook
            sampled = sample(logits, text if name == TEXT else audio, count)
            return torch.where(given == _OPEN, sampled, given)

        written = self.system.write(z, choose)
        real = torch.tensor([row in rows for row in computed], device=self._device)
        for stream in self._said:
            ids = written[stream.name].view(len(computed), -1)
            kept = self._ids[stream.name]
            kept[index[real], slot[real]] = ids[real]

    def _settings(self) -> tuple[RowSamplings, RowSamplings]:
        """How text and audio of all rows are sampled."""
        if self._samplings is None:
            own = [session.sampling if session else FrameSampling() for session in self._rows]
            self._samplings = (
                row_samplings([sampling.text for sampling in own], self._device),
                row_samplings([sampling.audio for sampling in own], self._device),
            )
        return self._samplings

    def _complete(self, rows: Sequence[int]) -> dict[int, Frame]:
        """The frames that the newest columns have completed; makes room for the next columns."""
        newest, index = self._columns(rows), torch.tensor(rows, device=self._device)
        content = newest - 1 - self._latest_said
        ids = {
            stream.name: self._ids[stream.name][
                index, (content + 1 + stream.delay_ticks) % self._num_slots
            ]
            for stream in self._said
        }
        # Its last user was the column before the oldest in use, `num_slots` / 2 - 1 before this.
        free = (newest + self._num_slots // 2) % self._num_slots
        for kept in self._ids.values():
            kept[index, free] = _OPEN
        return {
            row: {name: picked[i] for name, picked in ids.items()}
            for i, row in enumerate(rows)
            if self[row].num_heard - self._latest_said >= self[row].num_prompt
        }

    def _parsed(self, row: int, codes: Mapping[str, Codes]) -> dict[str, list[int]]:
        """What a row is given, checked."""
        self[row]
        needed, known = {s.name for s in self._heard}, set(self._ids)
        if missing := sorted(needed - set(codes)):
            raise ValueError(
                f"Row {row} must hear all of {', '.join(sorted(needed))}: got no "
                f"{', '.join(missing)}. Leave the row out to pause it."
            )
        if unknown := sorted(set(codes) - known):
            raise ValueError(
                f"Streams must be of the layout ({', '.join(sorted(known))}): got "
                f"{', '.join(unknown)} for row {row}."
            )
        return {name: _parsed_ids(self.system.layout[name], ids) for name, ids in codes.items()}


def _parsed_ids(stream: Stream, codes: Codes) -> list[int]:
    given = torch.as_tensor(codes)
    ids: list[int] = given.reshape(-1).tolist()
    last = (stream.vocab_size or 0) - 1
    whole_numbers = not (given.is_floating_point() or given.dtype == torch.bool)
    in_range = all(0 <= found <= last for found in ids)
    if len(ids) != stream.depth or not (whole_numbers and in_range):
        raise ValueError(
            f"A frame of {stream.name!r} must have {stream.depth} ids of 0 to {last}: got {ids}."
        )
    return ids


def _tensors(state: State) -> list[Tensor]:
    """All tensors of a state."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in _tensors(part)]

"""Frame sessions: rows that hear one frame at a time and say the next one.

A frame is said while it is heard, so a session is a loop at the rate of the frames. Everything is
kept by *column*, the place in the order of arrival: column 0 is the initial frame, and content
frame f of a stream stands in column f + 1 + its delay. A step reads one column of a row and writes
the next one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterpoint.runtime.prompts import (
    Prefix,
    check_prefix,
    holds_whole_numbers,
    prompt_columns,
)
from counterpoint.runtime.sampler import RowSamplings, Sampling, row_samplings, sample
from counterpoint.streams.spec import UNSET_ID, Ticks
from counterpoint.systems.moshi import Moshi, MoshiState
from counterpoint.systems.moshi_streams import TEXT

_OPEN = -2  # what is still to be said; `UNSET_ID` is nothing, for good

MOST_CANDIDATES = 256
"""Sessions that keep at most so many ids (`top_k`) are sampled without sorting a vocabulary."""

Codes = Tensor | Sequence[int] | int
"""Ids of one frame of a stream: one for the text, one for each codebook of an audio stream."""

Frame = dict[str, Int[Tensor, " _K"]]
"""Ids of one frame by stream, for each codebook one; the text has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSampling:
    """How one session chooses text and audio; by default as the published Moshi does.

    The two may have the same seed: no random number is used twice.

    Attributes:
        text: For the text stream.
        audio: For every codebook.
        guidance: Scale of classifier-free guidance: scores become those without the prompt, plus
            so many times what the prompt adds. 1 is none; any other needs a second row.
        padding_bias: What is added to the score of the text's padding: above 0 the model is slower
            to speak, below 0 it speaks more.

    Source of the bias: `pad_mult` of Kyutai's server.
    """

    text: Sampling = Sampling(temperature=0.7, top_k=25)
    audio: Sampling = Sampling(temperature=0.8, top_k=250)
    guidance: float = 1.0
    padding_bias: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"`guidance` must be >= 0 (1 is none): got {self.guidance}.")
        if not math.isfinite(self.padding_bias):
            raise ValueError(f"`padding_bias` must be finite: got {self.padding_bias}.")


@dataclass(kw_only=True, slots=True)
class FrameSession:
    """What one row does and has done; read it, and leave the writing to `FrameSessions`.

    Attributes:
        sampling: How its ids are chosen.
        num_prompt: Content frames of its prompt.
        num_heard: Content frames it has heard, those of the prompt included.
        twin: The row that hears the same without the prompt, for guidance.
    """

    sampling: FrameSampling
    num_prompt: int = 0
    num_heard: int = 0
    twin: int | None = None


class _Guidance(NamedTuple):
    """Whose ids each row takes, whose scores are those without its prompt, and its scale."""

    lead: Int[Tensor, " n"]
    null: Int[Tensor, " n"]
    scale: Float[Tensor, "n 1"]


class _Kind(NamedTuple):
    """How one kind of elements is chosen, and which rows may keep over `MOST_CANDIDATES`."""

    rows: RowSamplings
    wide: Bool[Tensor, " n"] | None


class _Settings(NamedTuple):
    """How the elements of some rows are chosen."""

    text: _Kind
    audio: _Kind
    guidance: _Guidance | None
    padding_bias: Float[Tensor, "n V"] | None


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
        num_rows: Rows; a session takes one, a guided session two.

    Source: section 3.4 of Moshi (arXiv:2410.00037), schedule and guidance of the reference
    implementation. Where a stream has not begun, the elements of the frame behind it see its
    initial id as in training; in the reference they see a sampled id that is then dropped.
    """

    def __init__(self, system: Moshi, num_rows: int) -> None:
        if num_rows < 1:
            raise ValueError(f"`num_rows` must be >= 1, got {num_rows}.")
        self.system = system
        self.state: MoshiState = system.initial_state(num_rows)
        streams = system.layout.streams
        said = {TEXT, *(stream.name for stream in system.predicted)}
        # What is said comes first in a layout.
        self._said = tuple(stream for stream in streams if stream.name in said)
        self._heard = tuple(stream for stream in streams if stream.name not in said)
        self._latest_said = max(stream.delay_ticks for stream in self._said)
        latest = max(stream.delay_ticks for stream in streams)
        # From the oldest column of the frame that is complete to the newest that can be given.
        self._num_slots = 2 * latest + 2
        stops = list(accumulate(stream.depth for stream in streams))
        # Elements of each stream in a column; those of a said stream are its random numbers.
        self._elements = {
            s.name: slice(stop - s.depth, stop) for s, stop in zip(streams, stops, strict=True)
        }
        sizes = (system.config.text_vocab_size, *system.config.codebook_sizes)
        self._sizes = {name: sizes[place] for name, place in self._elements.items()}
        self._num_said = sum(stream.depth for stream in self._said)
        self._device = system.text_embedding.table.weight.device
        self._ids = torch.full((num_rows, self._num_slots, stops[-1]), _OPEN, device=self._device)
        delays = [s.delay_ticks for s in self._said for _ in range(s.depth)]
        self._said_delays = torch.tensor(delays, device=self._device)
        self._said_index = torch.arange(self._num_said, device=self._device)
        self._every = torch.arange(num_rows, device=self._device)
        self._rows: list[FrameSession | None] = [None] * num_rows
        self._leads: dict[int, int] = {}  # of twins
        self._settings: _Settings | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> FrameSession:
        session = self._rows[row] if 0 <= row < len(self._rows) else None
        if session is None or row in self._leads:
            raise ValueError(
                f"Row {row} must have been started: this batch has the rows 0 to "
                f"{len(self._rows) - 1}. Call `start` first."
            )
        return session

    @property
    def running(self) -> list[int]:
        """Rows that have been started and not stopped."""
        return [i for i, s in enumerate(self._rows) if s and i not in self._leads]

    @property
    def free(self) -> list[int]:
        """Rows that nobody uses."""
        return [i for i, s in enumerate(self._rows) if s is None]

    @torch.no_grad()
    def start(
        self,
        row: int,
        sampling: FrameSampling | None = None,
        *,
        prompt: Ticks | None = None,
        prefix: Prefix | None = None,
        twin: int | None = None,
    ) -> Frame | None:
        """Begin a new session in a row, whatever was there before.

        The model reads the initial frame and the prompt in one pass and writes the next column.

        Args:
            row: Which row.
            sampling: How its ids are chosen; by default `FrameSampling()`.
            prompt: What all streams said before, one row in content order: text (1, P), audio
                (1, P, K). `UNSET_ID` is read as nothing.
            prefix: The beginning of the prompt, read before.
            twin: A free row, which guidance needs: it reads the prompt as unset.

        Returns:
            As in `step`: only without any delay the first frame is complete at once.

        Raises:
            ValueError: Rows or the prompt do not fit; nothing has changed then.
        """
        sampling = sampling or FrameSampling()
        self._check_rows(row, twin, sampling)
        columns, num_prompt = prompt_columns(self.system, prompt)
        if prefix is not None:
            check_prefix(prefix, columns, num_prompt)
        self._release(row)
        z = [self._prefill(row, columns, num_prompt, prefix)]
        self._rows[row] = session = FrameSession(
            sampling=sampling, num_prompt=num_prompt, num_heard=num_prompt, twin=twin
        )
        if twin is not None:
            nothing = {name: torch.full_like(ids, UNSET_ID) for name, ids in (prompt or {}).items()}
            unprompted, _ = prompt_columns(self.system, nothing or None)
            z.append(self._prefill(twin, unprompted, num_prompt, None))
            self._rows[twin], self._leads[twin] = session, row
        rows = self._with_twins([row])
        index, column = torch.tensor([[r, num_prompt + 1] for r in rows], device=self._device).T
        self._write(index, column, torch.cat(z), self._settings_of(rows))
        return self._complete([row]).get(row)

    def stop(self, row: int) -> None:
        """End the session of a row."""
        self[row]
        self._release(row)

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
                No row has heard anything then.
        """
        codes = {row: self.check(row, given[row]) for row in sorted(given)}
        if not codes:
            return {}
        self._keep(codes)
        stepped = self._with_twins(codes)
        columns = [session.num_heard + 1 if session else 1 for session in self._rows]
        lengths = [row in stepped for row in range(len(self._rows))]
        column, length = torch.tensor([columns, lengths], device=self._device).unbind()
        ids = self._ids[self._every, column % self._num_slots][:, None]
        frames = {name: ids[..., place] for name, place in self._elements.items()}
        frames[TEXT] = frames[TEXT][..., 0]
        z, self.state = self.system.read(frames, self.state, length)
        for row in codes:
            self[row].num_heard += 1
        if self._settings is None:
            self._settings = self._settings_of(range(len(self._rows)))
        real = None if all(lengths) else length.bool()[:, None]
        self._write(self._every, column + 1, z[:, 0], self._settings, real)
        return self._complete(list(codes))

    def _keep(self, codes: Mapping[int, Mapping[str, list[int]]]) -> None:
        """Put what rows are given into the columns where it stands."""
        places: list[tuple[int, int, int, int]] = []
        for row, frame in codes.items():
            both = self._with_twins([row])
            for name, ids in frame.items():
                first = self._elements[name].start
                ahead = 1 + self.system.layout[name].delay_ticks + (first < self._num_said)
                slot = (self[row].num_heard + ahead) % self._num_slots
                places += [(r, slot, first + k, found) for r in both for k, found in enumerate(ids)]
        if places:
            row_, slot_, element, found_ = torch.tensor(places, device=self._device).unbind(1)
            self._ids[row_, slot_, element] = found_

    def _write(
        self,
        index: Int[Tensor, " n"],
        column: Int[Tensor, " n"],
        z: Float[Tensor, "n D"],
        settings: _Settings,
        real: Bool[Tensor, "n 1"] | None = None,
    ) -> None:
        """Write a column of rows; those that are not real are computed, so that shapes stay."""
        slot = column % self._num_slots
        given = self._ids[index, slot, : self._num_said]
        is_open = given == _OPEN
        count = column[:, None] * self._num_said + self._said_index

        def choose(name: str, codebook: int, logits: Tensor) -> Tensor:
            at, guidance = self._elements[name].start + codebook, settings.guidance
            if guidance is not None:
                logits = _guided(logits, guidance)
            if name == TEXT and settings.padding_bias is not None:
                logits = logits + settings.padding_bias
            kind = settings.text if name == TEXT else settings.audio
            sampled = _sampled(logits, kind, count[:, at])
            ids = torch.where(is_open[:, at], sampled, given[:, at])
            return ids if guidance is None else ids[guidance.lead]

        written = self.system.write(z, choose)
        ids = torch.cat([written[stream.name].view(len(z), -1) for stream in self._said], 1)
        new = is_open if real is None else is_open & real
        self._ids[index, slot, : self._num_said] = torch.where(new, ids, given)

    def _complete(self, rows: Sequence[int]) -> dict[int, Frame]:
        """The frames that the newest columns have completed; makes room for the next columns."""
        both = self._with_twins(rows)
        columns = [(row, session.num_heard + 1) for row in both if (session := self._rows[row])]
        index, newest = torch.tensor(columns, device=self._device).unbind(1)
        slot = newest[:, None] - self._latest_said + self._said_delays
        said = self._ids[index[:, None], slot % self._num_slots, self._said_index]
        # Its last user was the column before the oldest in use, `num_slots` / 2 - 1 before this.
        self._ids[index, (newest + self._num_slots // 2) % self._num_slots] = _OPEN
        return {
            row: {stream.name: ids[self._elements[stream.name]] for stream in self._said}
            for row, ids in zip(rows, said.unbind(), strict=False)
            if self[row].num_heard - self._latest_said >= self[row].num_prompt
        }

    def _prefill(
        self, row: int, columns: Ticks, num_prompt: int, prefix: Prefix | None
    ) -> Float[Tensor, "1 D"]:
        """Empty a row and let it read the initial frame and a prompt."""
        self._ids[row] = _OPEN
        for stream in self.system.layout.streams:
            # Late streams go on with the prompt where the others go on with the session.
            place = self._elements[stream.name]
            for column in range(num_prompt + 1, num_prompt + 1 + stream.delay_ticks):
                self._ids[row, column % self._num_slots, place] = columns[stream.name][0, column]
        mine = [cache[row : row + 1] for cache in self.state.caches]
        for cache in mine:
            cache.zero_()
        num_read = 0
        if prefix is not None:
            num_read, z = prefix.num_frames + 1, prefix.z
            for cache, kept in zip(mine, prefix.caches, strict=True):
                cache[:, :, :, : kept.shape[3]] = kept
        if num_read <= num_prompt:
            rest = {name: ids[:, num_read : num_prompt + 1] for name, ids in columns.items()}
            position = self.state.position.new_tensor([num_read])
            z_all, _ = self.system.read(rest, MoshiState(position, tuple(mine)))
            z = z_all[:, -1]
        self.state.position[row] = num_prompt + 1
        return z

    def _with_twins(self, rows: Iterable[int]) -> list[int]:
        """Rows, and behind them those that hear the same for their guidance."""
        own = list(rows)
        return own + [twin for row in own if (twin := self[row].twin) is not None]

    def _release(self, row: int) -> None:
        session = self._rows[row]
        self._rows[row] = self._settings = None
        if session and session.twin is not None:
            self._rows[session.twin] = None
            del self._leads[session.twin]

    def _check_rows(self, row: int, twin: int | None, sampling: FrameSampling) -> None:
        if not 0 <= row < len(self._rows):
            raise ValueError(f"`row` must be 0 to {len(self._rows) - 1}: got {row}.")
        if row in self._leads:
            raise ValueError(f"Row {row} must not be in use: it guides row {self._leads[row]}.")
        own = session.twin if (session := self._rows[row]) else None
        fits = twin is None or (twin != row and twin in (own, *self.free))
        if not fits or (twin is None) != (sampling.guidance == 1):
            raise ValueError(
                "`twin` must be a free row where `guidance` is not 1, and only then: got "
                f"{twin} for row {row} and {sampling.guidance}."
            )

    def _settings_of(self, rows: Sequence[int]) -> _Settings:
        """How the elements of some rows are chosen."""
        sessions = [self._rows[row] for row in rows]
        own = [session.sampling if session else FrameSampling() for session in sessions]
        guidance = None
        if any(row in self._leads for row in rows):
            place = {row: i for i, row in enumerate(rows)}
            lead = [place[self._leads.get(row, row)] for row in rows]
            twins = [row if s is None else s.twin for row, s in zip(rows, sessions, strict=True)]
            null = [place[row if t is None else t] for row, t in zip(rows, twins, strict=True)]
            who = torch.tensor([lead, null], device=self._device)
            scale = torch.tensor([[sampling.guidance] for sampling in own], device=self._device)
            guidance = _Guidance(who[0], who[1], scale)
        text, audio = (self._kind([getattr(s, name) for s in own]) for name in ("text", "audio"))
        return _Settings(text, audio, guidance, self._padding_bias(own))

    def _padding_bias(self, own: Sequence[FrameSampling]) -> Float[Tensor, "n V"] | None:
        """What rows add to the scores of the text; ``None`` where none adds anything."""
        config, biases = self.system.config, [sampling.padding_bias for sampling in own]
        if not any(biases):
            return None
        added = torch.zeros(len(own), config.text_vocab_size, device=self._device)
        added[:, config.text_padding_id] = torch.tensor(biases, device=self._device)
        return added

    def _kind(self, samplings: Sequence[Sampling]) -> _Kind:
        each = [s.temperature > 0 and not 0 < s.top_k <= MOST_CANDIDATES for s in samplings]
        wide = torch.tensor(each, device=self._device) if any(each) else None
        return _Kind(row_samplings(samplings, self._device), wide)

    def check(self, row: int, codes: Mapping[str, Codes]) -> dict[str, list[int]]:
        """The ids that a row is given for `step`.

        Raises:
            ValueError: No session has the row, or they do not fit.
        """
        self[row]
        needed, known = {s.name for s in self._heard}, set(self._elements)
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
        return {name: _parsed_ids(name, ids, self._sizes[name]) for name, ids in codes.items()}


def _guided(logits: Float[Tensor, "n V"], guidance: _Guidance) -> Float[Tensor, "n V"]:
    """Scores moved away from those without the prompt; equal ones, also of -inf, stay."""
    null = logits[guidance.null]
    moved = null + guidance.scale.to(logits.dtype) * (logits - null)
    return torch.where(logits == null, logits, moved)


def _sampled(
    logits: Float[Tensor, "n V"],
    kind: _Kind,
    count: Int[Tensor, " n"],
) -> Int[Tensor, " n"]:
    """Choose as `sample` does; rows that keep few ids choose among their likeliest.

    The number of candidates is fixed, so that a row never feels how many others keep.
    """
    if logits.shape[1] <= MOST_CANDIDATES:
        return sample(logits, kind.rows, count)
    # In the order of their ids, so that the first of equal ones stays the first.
    likeliest = logits.topk(MOST_CANDIDATES).indices.sort().values
    place = sample(logits.gather(1, likeliest), kind.rows, count)
    ids = likeliest.gather(1, place[:, None])[:, 0]
    if kind.wide is None:
        return ids
    return torch.where(kind.wide, sample(logits, kind.rows, count), ids)


def _parsed_ids(name: str, codes: Codes, sizes: Sequence[int]) -> list[int]:
    """Ids of a frame of a stream whose codebooks have so many, or an error if they do not fit."""
    ids: list[int]
    try:
        given = torch.as_tensor(codes)
        ids, fits = given.reshape(-1).tolist(), holds_whole_numbers(given)
    except (TypeError, ValueError, RuntimeError):  # no numbers at all
        ids, fits = [], False
    fits = fits and len(ids) == len(sizes)
    if not fits or any(not 0 <= found < size for found, size in zip(ids, sizes, strict=True)):
        last = [size - 1 for size in sizes]
        raise ValueError(
            f"A frame of {name!r} must have {len(sizes)} ids of 0 to "
            f"{last[0] if len(set(last)) == 1 else last}: got {ids or codes}."
        )
    return ids

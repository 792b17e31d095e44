"""Sessions: the rows of one batch, each fed, sampled, stopped and started again on its own."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.runtime.sampler import RowSamplings, Sampling, row_samplings, sample
from counterpoint.runtime.simultaneous import Simultaneous
from counterpoint.streams.spec import Layout, Ticks
from counterpoint.systems.contract import Logits, State
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig


@runtime_checkable
class Streaming(Protocol):
    """What a session needs of a model: every `System` has it, and so has `Simultaneous`."""

    config: Any
    layout: Layout

    def initial_state(self, batch_size: int) -> State:
        """See `System.initial_state`."""
        ...

    def extend(
        self, ticks: Ticks, state: State, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Logits, State]:
        """See `System.extend`."""
        ...


class Ended(StrEnum):
    """Why a session gives no more ids."""

    END_ID = "end id"
    LIMIT = "limit"
    STOPPED = "stopped"


@dataclass(kw_only=True, slots=True)
class Session:
    """What one row does and has done; read it, and leave the writing to `Sessions`.

    Attributes:
        sampling: How its ids are chosen.
        end_id: Id after which it ends.
        max_sampled: Ids after which it ends.
        num_fed: Ids it was given.
        sampled: Ids it has chosen, an end id included.
        ended: Why it has ended; ``None`` while it runs.
    """

    sampling: Sampling
    end_id: int | None = None
    max_sampled: int | None = None
    num_fed: int = 0
    sampled: list[int] = field(default_factory=list)
    ended: Ended | None = None


class Sessions:
    """A batch of sessions over one model: `start` a row, `feed` it, `step` all rows.

    Rows share nothing but the computation. What a row gives depends on its own ids, sampling and
    order of calls. Whatever the other rows of the batch do, it is the same bit for bit as long as
    the model's calls have the same shape, which the row with the most new ids decides; otherwise,
    and however its ids are cut into calls of `feed`, it is the same to float tolerance.

    An id that was sampled is read by the model only with the next `step` or `feed` of its row, so
    the first id after a prompt waits for the prompt alone.

    Args:
        system: The model, or one whose towers run simultaneously.
        num_rows: Sessions at a time.
        stream: The stream that is fed and sampled; all others are the model's own.
        sliding: Let sessions be fed more than the model's window (`window_ticks`): what is older
            is then seen through states only, or not at all. Sampled ids always let it slide.
    """

    def __init__(
        self,
        system: Streaming,
        num_rows: int,
        *,
        stream: str = "part",
        sliding: bool = False,
    ) -> None:
        if num_rows < 1:
            raise ValueError(f"`num_rows` must be >= 1, got {num_rows}.")
        self.system = system
        self.state: State = system.initial_state(num_rows)
        self._stream = stream
        self._vocab_size = system.layout[stream].vocab_size or 0
        self._window = None if sliding else window_ticks(system)
        self._rows: list[Session | None] = [None] * num_rows
        self._device = next(_tensors(self.state)).device
        self._unread: list[int | None] = [None] * num_rows
        self._logits = torch.zeros(num_rows, self._vocab_size, device=self._device)
        self._samplings: RowSamplings | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Session:
        session = self._rows[row] if 0 <= row < len(self._rows) else None
        if session is None:
            raise ValueError(
                f"Row {row} must have been started: this batch has the rows 0 to "
                f"{len(self._rows) - 1}. Call `start` first."
            )
        return session

    @property
    def running(self) -> list[int]:
        """Rows that have been started and have not ended."""
        return [i for i, session in enumerate(self._rows) if session and not session.ended]

    @torch.no_grad()
    def start(
        self,
        row: int,
        sampling: Sampling | None = None,
        *,
        end_id: int | None = None,
        max_sampled: int | None = None,
    ) -> Session:
        """Begin a new session in a row, whatever was there before.

        Args:
            row: Which row.
            sampling: How its ids are chosen; by default `Sampling()`.
            end_id: Id after which the session ends.
            max_sampled: Ids after which it ends.
        """
        if not 0 <= row < len(self._rows):
            raise ValueError(f"`row` must be 0 to {len(self._rows) - 1}: got {row}.")
        if max_sampled is not None and max_sampled < 1:
            raise ValueError(f"`max_sampled` must be >= 1, got {max_sampled}.")
        if isinstance(self.system, Simultaneous):
            self.system.wait()
        for tensor in _tensors(self.state):
            tensor[row].zero_()
        session = Session(sampling=sampling or Sampling(), end_id=end_id, max_sampled=max_sampled)
        self._rows[row] = session
        self._unread[row] = None
        self._samplings = None
        return session

    def stop(self, row: int) -> None:
        """End a session; one that has ended stays as it is."""
        session = self[row]
        session.ended = session.ended or Ended.STOPPED

    def feed(self, ids: Mapping[int, Sequence[int]]) -> None:
        """Let rows read ids, each any number of them; all rows in one pass of the model.

        Raises:
            ValueError: A row is not running, an id is not in the vocabulary, or a session is given
                more than the model's window and may not slide.
        """
        for row, new in ids.items():
            self._check(row, new)
        self._read({row: [*self._take_unread(row), *new] for row, new in ids.items()})
        for row, new in ids.items():
            self[row].num_fed += len(new)

    @torch.no_grad()
    def step(self, rows: Collection[int] | None = None) -> dict[int, int]:
        """Sample the next id of every running row, or of some of them; the others pause.

        Returns:
            Id by row. A row that ends with this id is not in the next step.

        Raises:
            ValueError: A row that is named is not running, or was never fed.
        """
        rows = self.running if rows is None else sorted(set(rows))
        for row in rows:
            session = self._running(row)
            if not session.num_fed:
                raise ValueError(
                    f"Row {row} must be fed at least one id before it is sampled: got none. "
                    "Feed a prompt, or the start id of the tokeniser."
                )
        if not rows:
            return {}
        self._read({row: unread for row in rows if (unread := self._take_unread(row))})
        chosen = self._sample()
        new = {row: chosen[row] for row in rows}
        for row, sampled in new.items():
            session = self[row]
            session.sampled.append(sampled)
            self._unread[row] = sampled
            if sampled == session.end_id:
                session.ended = Ended.END_ID
            elif len(session.sampled) == session.max_sampled:
                session.ended = Ended.LIMIT
        return new

    def _sample(self) -> list[int]:
        """An id for every row, from the scores behind the last id it read."""
        if self._samplings is None:
            settings = [session.sampling if session else Sampling() for session in self._rows]
            self._samplings = row_samplings(settings, self._device)
        drawn = [len(session.sampled) if session else 0 for session in self._rows]
        count = torch.tensor(drawn, device=self._device)
        chosen: list[int] = sample(self._logits, self._samplings, count).tolist()
        return chosen

    def _running(self, row: int) -> Session:
        session = self[row]
        if session.ended:
            raise ValueError(
                f"Row {row} must be running: it has ended ({session.ended}). Start it again."
            )
        return session

    def _check(self, row: int, new: Sequence[int]) -> None:
        session = self._running(row)
        for found in new:
            if not 0 <= found < self._vocab_size:
                raise ValueError(
                    f"Ids must be 0 to {self._vocab_size - 1}: got {found} for row {row}. "
                    "Use the tokeniser that the model was trained with."
                )
        num_ticks = session.num_fed + len(session.sampled) + len(new)
        if self._window is not None and num_ticks > self._window:
            raise ValueError(
                f"A prompt must fit the model's window of {self._window} ticks: got {num_ticks}. "
                "Shorten it, or allow sliding, which forgets its beginning."
            )

    def _take_unread(self, row: int) -> list[int]:
        """The id that was sampled last, if the model has not read it; it counts as read then."""
        unread, self._unread[row] = self._unread[row], None
        return [] if unread is None else [unread]

    @torch.no_grad()
    def _read(self, ids: Mapping[int, Sequence[int]]) -> None:
        """One pass of the model over the new ids of some rows."""
        counts = [len(ids.get(row, ())) for row in range(len(self._rows))]
        num_ticks = max(counts)
        if not num_ticks:
            return
        # 0 stands where nothing is real; `lengths` makes the model ignore it.
        padded = [[*ids.get(row, ()), *[0] * (num_ticks - n)] for row, n in enumerate(counts)]
        ticks = {self._stream: torch.tensor(padded, device=self._device)}
        lengths = torch.tensor(counts, device=self._device)
        full = min(counts) == num_ticks
        logits, self.state = self.system.extend(ticks, self.state, None if full else lengths)
        scores = logits[self._stream]
        row = torch.arange(len(counts), device=self._device)
        last = scores[row, (lengths - 1).clamp(min=0)].float()
        self._logits = torch.where(lengths[:, None] > 0, last, self._logits)


def generate(
    system: Streaming,
    prompt: Sequence[int],
    sampling: Sampling | None = None,
    num_ticks: int = 256,
    *,
    end_id: int | None = None,
    whole_from: Sequence[int] | None = None,
    sliding: bool = False,
) -> Iterator[int]:
    """Continue a prompt, id by id.

    Args:
        system: The model.
        prompt: At least one id, such as the start id of the tokeniser.
        sampling: How ids are chosen.
        num_ticks: Most ids to give.
        end_id: Id after which it ends; it is given too.
        whole_from: Ids of another text, at least as many as the prompt has: the prompt goes on
            under the whole of these (`TwoStream` only).
        sliding: Accept a prompt longer than the model's window.

    Raises:
        ValueError: The prompt is empty, too long, or not of the model's vocabulary; or it cannot go
            on under another whole.
    """
    sessions = Sessions(system, 1, sliding=sliding)
    session = sessions.start(0, sampling, end_id=end_id, max_sampled=num_ticks)
    if whole_from is not None:
        prompt = _feed_under(sessions, prompt, whole_from)
    sessions.feed({0: prompt})
    while not session.ended:
        yield sessions.step()[0]


def _feed_under(
    sessions: Sessions, prompt: Sequence[int], whole_from: Sequence[int]
) -> Sequence[int]:
    """Feed all of a prompt but its last id, change its whole, and give back that last id."""
    model = sessions.system.system if isinstance(sessions.system, Simultaneous) else sessions.system
    if not isinstance(model, TwoStream):
        raise ValueError(
            f"Only a TwoStream can go on under another whole: got {type(model).__name__}."
        )
    fed = len(prompt) - 1
    if fed > 0:
        sessions.feed({0: prompt[:fed]})
    needed, usable = int(sessions.state.finished[0]), model.config.lag_blocks + 1
    if needed < usable:
        raise ValueError(
            f"To go on under another whole, a prompt must finish {usable} blocks or more before "
            f"its last id: got {needed}. Give a longer prompt."
        )
    donor = Sessions(model, 1, sliding=True)
    donor.start(0)
    rest = list(whole_from)
    # Id by id where blocks end early: the donor should stop close to as many blocks as there are.
    while rest and int(donor.state.finished[0]) < needed:
        donor.feed({0: [rest.pop(0)]})
    have = int(donor.state.finished[0])
    if have < needed:
        raise ValueError(
            f"The text that gives its whole must finish as many blocks as the prompt, {needed}: "
            f"got {have}. Give a longer text."
        )
    sessions.state = model.swap(sessions.state, donor.state)
    return prompt[fed:]


def window_ticks(system: Streaming) -> int:
    """Most recent ticks that a model reads at once, through whichever stream reaches furthest.

    An upper bound where blocks may end early: the whole's window then holds fewer ticks.
    """
    config = system.config
    match config:
        case SingleStreamConfig():
            return config.tower.window
        case TwoStreamConfig():
            whole = (config.whole.window + config.lag_blocks) * config.block_ticks
            return max(config.part.window, whole)
    raise ValueError(
        f"The window is known of SingleStream and TwoStream only: got {type(config).__name__}. "
        "Allow sliding."
    )


def _tensors(state: State) -> Iterator[Tensor]:
    """All tensors of a state."""
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state:
            yield from _tensors(part)

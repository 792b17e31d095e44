"""Sessions: the rows of one batch; each is fed, stepped, stopped and started on its own.

A session is a loop at the rate of the ticks. The model *reads* a column of the row (what it wrote
itself, and what is heard meanwhile) and *writes* the next one. A text model hears nothing and
writes one id a tick; a speech model hears a frame while it says one. Everything is stored by
column, the position in arrival order (`counterpoint.streams.schedule`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.choices import (
    FrameSampling,
    PromptGuidance,
    RowChoices,
    choices_of,
    sampling_of,
)
from counterpoint.runtime.column_queue import OPEN, ColumnQueue, WhichRows
from counterpoint.runtime.given import (
    Codes,
    Given,
    check_begun,
    check_ids,
    check_limits,
    check_prompt,
    parse_frame,
)
from counterpoint.runtime.prefix import check_prefix, read_prompt, unset
from counterpoint.runtime.sampler import NO_ID, Sampling
from counterpoint.runtime.session import Ended, Frame, NoIdError, Session, Streaming
from counterpoint.streams import schedule
from counterpoint.streams.spec import Ticks
from counterpoint.systems.contract import Prefix, State, map_state


class Sessions:
    """A batch of sessions over one model.

    The model says the streams that it predicts and hears the others. A model that predicts both
    speakers talks with itself; for a live user, use its `System.agent_alone`.

    A session that has processed f ticks has written column lead + f, and returns the newest frame
    of which all streams have arrived. With Moshi's delay of one frame, a frame that is said is
    complete when the same frame has been heard.

    The rows share nothing but the computation. The output of a row depends only on its input and
    its sampling. Whatever the other rows do, it is equal bit for bit as long as the model's calls
    have the same shape, which only `feed` changes. Otherwise, and however its ids are cut into
    calls of `feed`, it is equal to float tolerance. A prompt is read in a call of its own.

    The model reads a column that was written last only with the next `step` or `feed` of its row,
    so the first id after a prompt waits for the prompt alone.

    Args:
        system: The model, or a `Simultaneous` around it.
        num_rows: Number of rows; a session takes one, a guided session two.
        sliding: Whether `feed` may give sessions more than the model's window. Older ticks are then
            known only through states, or not at all. Sampling and hearing may always go beyond the
            window.

    Source: section 3.4 of Moshi (arXiv:2410.00037); schedule and guidance follow the reference
    implementation. Deviation: where a stream has not begun, later elements of the same frame see
    its initial id, as in training; in the reference they see a sampled id that is then dropped.
    """

    def __init__(self, system: Streaming, num_rows: int, *, sliding: bool = False) -> None:
        if num_rows < 1:
            raise UserError(f"`num_rows` must be >= 1, got {num_rows}.")
        self.system = system
        self.layout = layout = system.layout
        self.state: State = system.initial_state(num_rows)
        self._window = None if sliding else system.window_ticks
        self._device = system.device
        self._said = layout.predicted
        self._heard = layout.heard
        # A session that has processed f ticks writes column f + `_lead`, which completes the tick
        # f + `_first_tick`.
        self._lead = schedule.next_column(layout, 0)
        self._first_tick = schedule.complete_tick(layout, self._lead)
        self._queue = ColumnQueue(layout, num_rows, self._device)
        # A text model writes one id a tick and hears nothing; its ids are stored, and may be fed.
        self._is_text = self._queue.num_said == 1 and not self._heard and not self._lead
        self._every = torch.arange(num_rows, device=self._device)
        self._hidden: Float[Tensor, "B D"] | None = None
        self._rows: list[Session | None] = [None] * num_rows
        self._all = list(range(num_rows))
        self._leads: dict[int, int] = {}  # for each twin, the row that it guides
        self._choices: RowChoices | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Session:
        session = self._rows[row] if 0 <= row < len(self._rows) else None
        if session is None or row in self._leads:
            raise UserError(
                f"Row {row} must have been started: this batch has the rows 0 to "
                f"{len(self._rows) - 1}. Call `start` first."
            )
        return session

    @property
    def running(self) -> list[int]:
        """Rows that have been started and have not ended."""
        return [
            row
            for row, session in enumerate(self._rows)
            if session and not session.ended and row not in self._leads
        ]

    @property
    def free(self) -> list[int]:
        """Rows that are not in use."""
        return [
            row
            for row, session in enumerate(self._rows)
            if row not in self._leads and (session is None or session.ended)
        ]

    @torch.no_grad()
    def start(
        self,
        row: int,
        sampling: Sampling | FrameSampling | None = None,
        *,
        prompt: Ticks | None = None,
        prefix: Prefix | None = None,
        twin: int | None = None,
        end_id: int | None = None,
        max_sampled: int | None = None,
        given: Mapping[str, Codes] | None = None,
    ) -> Session:
        """Begin a new session in a row, whatever the row held before.

        The model reads the initial frame and the prompt in one pass and writes the next column.
        If there is neither, a model that hears begins by hearing and says nothing meanwhile; a text
        model waits for `feed`.

        Args:
            row: Number of the row.
            sampling: How its ids are chosen: one `Sampling` for all streams, or a `FrameSampling`.
                The default is `Sampling()` for text models and `FrameSampling()` for speech models.
            prompt: Earlier content of all streams, one row in content order: ids (1, P), ids of
                codebooks (1, P, K), floats (1, P, width). `UNSET_ID` marks an empty element.
            prefix: The beginning of the prompt, if it has been read already.
            twin: A free row, needed for guidance: it reads the prompt as unset.
            end_id: Id after which the session ends, in models that write one id a tick.
            max_sampled: Number of ids after which it ends, in models that write one id a tick.
            given: Ids that are forced in the first tick after a prompt, in models that hear
                nothing; see `step`.

        Raises:
            UserError: The rows, limits, prompt or ids do not fit. Then nothing has changed.
            NoIdError: The scores after the prompt allow no id. The session has ended.
        """
        own = sampling_of(self.layout, sampling)
        self._check_rows(row, twin, own)
        check_limits(self.layout, end_id, max_sampled, is_text=self._is_text)
        columns, num_prompt = check_prompt(self.layout, prompt, self._device)
        if prefix is not None:
            check_prefix(prefix, columns, num_prompt)
        # After f ticks a session is given tick f + 1 of what it says.
        told = parse_frame(self.layout, row, num_prompt - 1, given) if given else None
        self._release(row)
        self.system.wait()
        session = self._session(own, end_id, max_sampled, num_prompt, twin)
        hidden = [self._prefill(row, columns, num_prompt, prefix)]
        self._rows[row] = session
        if twin is not None:
            nothing = check_prompt(self.layout, unset(prompt), self._device)[0]
            hidden.append(self._prefill(twin, nothing, num_prompt, None))
            self._rows[twin] = session
            self._leads[twin] = row
        if told is not None:
            self._queue.keep([(self._with_twins([row]), told)])
        self._begin(row, [z for z in hidden if z is not None])
        return session

    def _session(
        self,
        sampling: FrameSampling,
        end_id: int | None,
        max_sampled: int | None,
        num_prompt: int,
        twin: int | None,
    ) -> Session:
        """Return a session that has read its prompt and written nothing; see `Session`."""
        return Session(
            sampling=sampling,
            end_id=end_id,
            max_sampled=max_sampled,
            num_prompt=num_prompt,
            num_ticks=num_prompt,
            first_said=schedule.first_said_tick(self.layout, num_prompt),
            # Random numbers are numbered by column with an initial frame, else as they are drawn.
            num_drawn=schedule.next_column(self.layout, num_prompt) if self._lead else 0,
            twin=twin,
        )

    def _begin(self, row: int, hidden: Sequence[Float[Tensor, "1 D"]]) -> None:
        """Write the column after all that was read; if nothing was read, hear and say nothing."""
        session = self[row]
        if hidden:
            session.opening = self._write_first(row, torch.cat([*hidden])).get(row)
        elif self._heard:
            for own in self._with_twins([row]):
                self._queue.rest(own, session.first_said)
            session.has_read = session.is_written = True

    def stop(self, row: int) -> None:
        """End the session of a row and free the row; the ended session can still be inspected."""
        session = self[row]
        session.ended = session.ended or Ended.STOPPED
        self._release(row, keep=session)

    @torch.no_grad()
    def feed(self, ids: Mapping[int, Sequence[int]]) -> None:
        """Let rows of a text model read ids, any number in each row, in one pass of the model.

        Raises:
            UserError: A row is not running, an id is outside the vocabulary, a session is given
                more than the model's window and may not slide, or the model is no text model.
        """
        for row, new in ids.items():
            self._check_feed(row, new)
        unread = {row: self[row].unread for row in ids}
        self._read_ids({row: [*unread[row], *new] for row, new in ids.items()})
        for row, new in ids.items():
            session = self[row]
            session.num_ticks += len(unread[row]) + len(new)
            session.num_fed += len(new)
            session.has_read = session.has_read or bool(new)
            session.is_written = False
            self._queue.clear(row)

    @torch.no_grad()
    def step(
        self, given: Mapping[int, Mapping[str, Codes]] | Collection[int] | None = None
    ) -> dict[int, Frame]:
        """Advance rows by a tick: read what they wrote and hear, and write the next column.

        Args:
            given: For each row, its input in this tick: the ids (or floats) of every stream that is
                heard, with the last tick that they cover. Ids of a stream that is said force that
                stream: they are those of its next tick. If nothing is heard, give rows alone, or
                ``None`` for all running rows. Rows that are not named pause.

        Returns:
            For each row the frame that is complete now, with the streams that have an element in
            it. A row whose first frame is not complete yet is left out. A row that ends with this
            frame does not take part in later steps.

        Raises:
            UserError: A row is not running or was never fed, a stream is missing or unknown, or
                ids do not fit. Then nothing has changed.
            NoIdError: The scores of a row allow no id. This row has ended, the others have
                advanced, and the error holds their frames.
        """
        if given is None:
            given = self.running
        if not isinstance(given, Mapping):
            given = {row: {} for row in given}
        checked = {row: self.check(row, given[row]) for row in sorted(given)}
        if not checked:
            return {}
        rows = list(checked)
        told = {row: what for row, what in checked.items() if what.ids or what.floats}
        self._queue.keep([(self._with_twins([row]), what) for row, what in told.items()])
        self._read_columns([row for row in rows if self[row].is_written])
        return self._write_columns(rows)

    def check(self, row: int, codes: Mapping[str, Codes]) -> Given:
        """Check the input of a row for `step`, and return it in the form in which it is stored.

        Raises:
            UserError: No session has the row, or its input does not fit.
        """
        session = self._running(row)
        if not session.has_read:
            check_begun(self.layout, row)
        if not codes and not self._heard:
            return Given({}, {})
        return parse_frame(self.layout, row, session.num_ticks, codes)

    # Reading

    def _read_columns(self, rows: Sequence[int]) -> None:
        """Let rows read the column that they have written, and what is heard with it."""
        if not rows:
            return
        reading = self._with_twins(rows)
        lengths = None
        if len(reading) < len(self._rows):
            real = set(reading)
            each = [int(row in real) for row in self._all]
            lengths = torch.tensor(each, device=self._device)
        self._read(self._queue.newest(None if lengths is None else lengths.bool()), lengths)
        for row in rows:
            self[row].num_ticks += 1

    def _read_ids(self, ids: Mapping[int, Sequence[int]]) -> None:
        """Run the model once over the new ids of some rows."""
        counts = [len(ids.get(row, ())) for row in range(len(self._rows))]
        num_ticks = max(counts)
        if not num_ticks:
            return
        # Padding is 0; `lengths` makes the model ignore it.
        padded = [[*ids.get(row, ()), *[0] * (num_ticks - n)] for row, n in enumerate(counts)]
        ticks = self._queue.by_stream(torch.tensor(padded, device=self._device)[..., None])
        is_full = min(counts) == num_ticks
        self._read(ticks, None if is_full else torch.tensor(counts, device=self._device))

    def _read(self, ticks: Ticks, lengths: Int[Tensor, " B"] | None) -> None:
        """Read ticks of all rows; rows without real ticks keep their hidden state."""
        hidden, self.state = self.system.read(ticks, self.state, lengths)
        if lengths is None:
            self._hidden = hidden[:, -1]
            return
        hidden = hidden[self._every, (lengths - 1).clamp(min=0)]
        if self._hidden is not None:
            hidden = torch.where(lengths[:, None] > 0, hidden, self._hidden)
        self._hidden = hidden

    def _prefill(
        self, row: int, columns: Ticks, num_prompt: int, prefix: Prefix | None
    ) -> Float[Tensor, "1 D"] | None:
        """Empty a row, and let it read the initial frame and a prompt."""
        self._queue.clear(row)
        self._queue.keep_tail(row, columns, num_prompt)
        return read_prompt(self.system, self.state, row, columns, num_prompt, prefix)

    # Writing

    def _write_first(self, row: int, hidden: Float[Tensor, "n D"]) -> dict[int, Frame]:
        """Write the first column of a row and of its twin, from what was read."""
        written = self._with_twins([row])
        if self._hidden is None:
            self._hidden = hidden.new_zeros(len(self._rows), hidden.shape[1])
        self._hidden[written] = hidden
        which = self._which(written)
        ids = self._write(which, written, hidden, self._choices_of(written))
        return self._complete(written, ids, self._queue.write(which, ids))

    def _write_columns(self, rows: Sequence[int]) -> dict[int, Frame]:
        """Write the next column of rows; all rows are computed, so that shapes stay fixed."""
        if self._hidden is None:
            raise AssertionError("a row that is checked has read something")
        if self._choices is None:
            self._choices = self._choices_of(self._all)
        written = sorted(self._with_twins(rows))
        which = self._which(written)
        ids = self._write(slice(None), self._all, self._hidden, self._choices)
        if not isinstance(which, slice):
            ids = ids[which]
        return self._complete(written, ids, self._queue.write(which, ids))

    def _which(self, rows: Sequence[int]) -> WhichRows:
        """Return rows as an index: a slice if they are all rows in order."""
        return slice(None) if rows == self._all else torch.tensor(rows, device=self._device)

    def _write(
        self,
        which: WhichRows,
        rows: Sequence[int],
        hidden: Float[Tensor, "n D"],
        choices: RowChoices,
    ) -> Int[Tensor, "n K"]:
        """Return the next column of some rows: ids that were given, otherwise chosen ids."""
        sessions = [self._rows[row] for row in rows]
        drawn = [session.num_drawn if session else 0 for session in sessions]
        numbers = choices.numbers(torch.tensor(drawn, device=self._device)).unbind(1)
        columns = [self._lead + session.num_ticks if session else 0 for session in sessions]
        given = self._queue.said(which, columns)

        def choose(name: str, codebook: int, logits: Tensor) -> Tensor:
            place = self._queue.places[name].start + codebook
            ids = choices.choose(name, logits, numbers[place])
            if given is not None:
                ids = torch.where(given[:, place] == OPEN, ids, given[:, place])
            return ids if choices.guidance is None else ids[choices.guidance.lead]

        state = self.state if self.system.writes_with_tower else None
        if state is not None and not isinstance(which, slice):
            state = map_state(lambda own: own[which], state)
        written = self.system.write(hidden, choose, state)
        num_rows = hidden.shape[0]
        ids = torch.cat([written[stream.name].view(num_rows, -1) for stream in self._said], 1)
        return ids if given is None else torch.where(given == OPEN, ids, given)

    def _complete(
        self, written: Sequence[int], ids: Int[Tensor, "n K"], said: Int[Tensor, "n K"]
    ) -> dict[int, Frame]:
        """Record what rows have written, and return the frames that are complete now.

        Args:
            written: Rows and their twins, in the order of ``ids``.
            ids: Ids that they have written into the newest column.
            said: Ids said in the tick that this column has completed.
        """
        sessions = [self._rows[row] for row in written]
        ticks = [self._first_tick + session.num_ticks if session else 0 for session in sessions]
        complete = self._queue.frames(ticks, said)
        frames = {}
        without = []
        rows = zip(written, sessions, ids.tolist(), ticks, complete, strict=True)
        for row, session, new, tick, frame in rows:
            if session is None or row in self._leads:
                continue
            session.has_read = session.is_written = True
            session.num_drawn += 1
            if NO_ID in new:  # nothing can be read there, so the row cannot continue
                session.ended = Ended.NO_ID
                without.append(row)
                continue
            if self._is_text:
                session.note(new[0])
            if tick >= session.first_said:
                frames[row] = frame
        if without:
            raise NoIdError.of("row", without, frames)
        return frames

    def _choices_of(self, rows: Sequence[int]) -> RowChoices:
        """Return how the elements of some rows are chosen."""
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
            guidance = PromptGuidance(who[0], who[1], scale)
        return choices_of(self.layout, own, guidance, self._device)

    # Rows

    def _with_twins(self, rows: Iterable[int]) -> list[int]:
        """Return rows, followed by their twins."""
        own = list(rows)
        if not self._leads:
            return own
        return own + [twin for row in own if (twin := self[row].twin) is not None]

    def _release(self, row: int, keep: Session | None = None) -> None:
        session = self._rows[row]
        self._rows[row] = keep
        self._choices = None
        if session and session.twin is not None:
            self._rows[session.twin] = None
            del self._leads[session.twin]
            session.twin = None

    def _running(self, row: int) -> Session:
        session = self[row]
        if session.ended:
            raise UserError(
                f"Row {row} must be running: it has ended ({session.ended}). Start it again."
            )
        return session

    def _check_rows(self, row: int, twin: int | None, sampling: FrameSampling) -> None:
        if not 0 <= row < len(self._rows):
            raise UserError(f"`row` must be 0 to {len(self._rows) - 1}: got {row}.")
        if row in self._leads:
            raise UserError(f"Row {row} must not be in use: it guides row {self._leads[row]}.")
        own = session.twin if (session := self._rows[row]) else None
        fits = twin is None or (twin != row and twin in (own, *self.free))
        if not fits or (twin is None) != (sampling.guidance == 1):
            raise UserError(
                "`twin` must be a free row if `guidance` is not 1, and None otherwise: got "
                f"{twin} for row {row} with guidance {sampling.guidance}."
            )

    def _check_feed(self, row: int, new: Sequence[int]) -> None:
        session = self._running(row)
        if not self._is_text:
            raise UserError(
                "Only text models can be fed ids: this one has "
                f"{', '.join(s.name for s in self.layout.streams)}. Give `start` a prompt."
            )
        (stream,) = self._said
        check_ids(stream, row, new)
        num_ticks = session.num_prompt + session.num_fed + len(session.sampled) + len(new)
        if self._window is not None and num_ticks > self._window:
            raise UserError(
                f"A prompt must fit the model's window of {self._window} ticks: got {num_ticks}. "
                "Shorten it, or set `sliding`, which forgets its beginning."
            )

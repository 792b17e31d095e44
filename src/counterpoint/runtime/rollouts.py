"""Rollouts: what a model writes after prompts, with the elements that it chose in every stream."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from counterpoint.runtime.prefix import read_prefix
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Frame, NoIdError
from counterpoint.runtime.sessions import Sessions
from counterpoint.streams import schedule
from counterpoint.streams.spec import UNSET_ID, Stream, Ticks
from counterpoint.systems.contract import Prefix, System
from counterpoint.train.rollout_source import Rollouts


@torch.no_grad()
def roll_out(
    system: System,
    prompts: Sequence[Ticks],
    seeds: Sequence[int],
    *,
    temperature: float = 1.0,
    most_ticks: int,
    end_id: int,
    prefixes: Sequence[Prefix] | None = None,
    given: Sequence[Ticks] | None = None,
) -> Rollouts:
    """Let a model continue prompts, each in a session of its own, in all its written streams.

    A prompt that stands several times in a row, as an equal object, is read once.

    Args:
        system: The model, in evaluation mode; it hears nothing.
        prompts: Content of the written streams, one row each, at least one tick.
        seeds: Seed of each row.
        temperature: Divisor of the scores; 0 always takes the likeliest id.
        most_ticks: Largest number of ticks that a row writes, with those that it is given.
        end_id: Id of the part after which a row ends.
        prefixes: The prompts if they have been read already; the state of a prefix may have been
            changed since.
        given: Content of some streams from tick 0 on, one row each. What goes beyond the prompt is
            forced instead of chosen, except elements with an unset id.
    """
    told = given or [{}] * len(prompts)
    limits = (most_ticks, end_id)
    rows = [_Row(system, *pair, *limits) for pair in zip(prompts, told, strict=True)]
    sessions = Sessions(system, len(rows), sliding=True)
    read = _prefixes(system, prompts) if prefixes is None else prefixes
    for number, (row, seed, prefix) in enumerate(zip(rows, seeds, read, strict=True)):
        sampling = Sampling(temperature=temperature, seed=seed)
        first = schedule.count_ticks(system.layout, prompts[number])
        session = sessions.start(
            number, sampling, prompt=prompts[number], prefix=prefix, given=row.given_in(first)
        )
        row.first = session.first_said
        if session.opening is not None:
            row.note(session.opening)
    while True:
        for number in sessions.running:
            if rows[number].is_complete:
                sessions.stop(number)
        if not sessions.running:
            break
        try:
            frames = sessions.step(_forced(sessions, rows))
        except NoIdError as problem:
            frames = dict(problem.frames)
        for number, frame in frames.items():
            rows[number].note(frame)
    return _joined(system, rows, end_id)


def _prefixes(system: System, prompts: Sequence[Ticks]) -> Iterator[Prefix]:
    """Read prompts one by one; equal objects in a row are read once."""
    for number, prompt in enumerate(prompts):
        if not number or prompt is not prompts[number - 1]:
            prefix = read_prefix(system, prompt)
        yield prefix


class _Row:
    """What one row has read and written, in content order.

    Attributes:
        first: Tick of the first frame that was written.
        num_ticks: Number of frames up to the end of the solution.
        frames: These frames and some after them: while delayed elements of the last frames were
            written, the model had already written, and read, more of the other streams.
    """

    def __init__(
        self, system: System, prompt: Ticks, given: Ticks, most_ticks: int, end_id: int
    ) -> None:
        self.streams = {stream.name: stream for stream in system.layout.predicted}
        self.prompt = {name: prompt[name][0].tolist() for name in self.streams if name in prompt}
        self.first = schedule.count_ticks(system.layout, prompt)
        self.num_ticks = 0
        self.frames: list[Frame] = []
        self._given = {name: ids[0].cpu() for name, ids in given.items()}
        self._has_ended = False
        self._most_ticks = most_ticks
        self._end_id = end_id
        self._part = system.layout.part.name
        self._num_after = schedule.latest_delay(system.layout)

    def given_in(self, tick: int) -> dict[str, Tensor]:
        """Return the elements that are forced in a tick."""
        found = {}
        for name, elements in self._given.items():
            step = tick // self.streams[name].period_ticks
            if not schedule.ends_step(self.streams[name], tick) or step >= len(elements):
                continue
            if bool((elements[step] != UNSET_ID).all()):
                found[name] = elements[step]
        return found

    def note(self, frame: Frame) -> None:
        """Store the next frame."""
        self.frames.append(frame)
        if not self._has_ended:
            self.num_ticks += 1
            is_end = int(frame.get(self._part, UNSET_ID)) == self._end_id
            self._has_ended = is_end or self.num_ticks == self._most_ticks

    @property
    def is_complete(self) -> bool:
        """Whether everything is known that was read before the last element of the solution."""
        return self._has_ended and len(self.frames) >= self.num_ticks + self._num_after

    def said(self, name: str) -> list[tuple[int, Tensor, bool]]:
        """Return the steps of a stream with their elements, and whether the solution has them."""
        period = self.streams[name].period_ticks
        return [
            ((self.first + number) // period, frame[name], number < self.num_ticks)
            for number, frame in enumerate(self.frames)
            if name in frame
        ]


def _forced(sessions: Sessions, rows: Sequence[_Row]) -> dict[int, dict[str, Tensor]]:
    """Return what each running row is given in the tick that it writes next."""
    return {row: rows[row].given_in(sessions[row].num_ticks + 1) for row in sessions.running}


def _joined(system: System, rows: Sequence[_Row], end_id: int) -> Rollouts:
    """Return the rows as tensors of equal length, one tick longer than full blocks."""
    layout = system.layout
    part = layout.part.name
    # A batch is cut where only delayed streams still have elements, so there is room for these.
    longest = max(row.first + len(row.frames) for row in rows) + schedule.latest_delay(layout)
    num_ticks = -(-(longest - 1) // layout.block_ticks) * layout.block_ticks + 1
    content = {}
    written = {}
    for stream in layout.predicted:
        ids, chosen = _elements(stream, rows, num_ticks)
        if stream.name == part:
            ids = ids.clamp(min=0)  # behind the end stands any id, as in training rows
        content[stream.name] = ids.to(system.device)
        written[stream.name] = chosen.to(system.device)
    texts = [[int(ids) for _, ids, is_own in row.said(part) if is_own] for row in rows]
    ended = torch.tensor([text[-1:] == [end_id] for text in texts], device=system.device)
    return Rollouts(content, written, texts, ended)


def _elements(stream: Stream, rows: Sequence[_Row], num_ticks: int) -> tuple[Tensor, Tensor]:
    """Return the elements of a stream in all rows, and which of them were chosen."""
    shape = (len(rows), num_ticks // stream.period_ticks)
    ids = torch.full((*shape, *stream.element_shape), UNSET_ID)
    chosen = torch.zeros(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        given = row.prompt.get(stream.name, [])
        if given:
            ids[number, : len(given)] = torch.tensor(given)
        for step, element, is_own in row.said(stream.name):
            ids[number, step] = element.view(stream.element_shape).cpu()
            chosen[number, step] = is_own
    return ids, chosen

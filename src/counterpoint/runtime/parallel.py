"""Hearing and thinking at the same time, tick by tick of one clock, without the lag of a chunk.

What is heard in a tick and what was thought in it are read together; then the thought of the next
tick is written. The events are those of `counterpoint.runtime.clocked`. A thought is closed by the
"clock" if the speech ends before the model writes the mark of the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from counterpoint.runtime.clocked import AGENT, USER, Closed, Proposal, check_threshold
from counterpoint.runtime.thinker import SystemThinker
from counterpoint.streams.rounds import THOUGHT, Marks
from counterpoint.streams.timeline import Event, Timeline


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How a model thinks while it hears.

    Attributes:
        tick_hz: Ticks a second; one token is written in each.
        nothing: Token of a tick in which nothing is thought.
        answer_tokens: Largest number of tokens of an answer.
        threshold: As in `ClockConfig.threshold`.
        marks: Marks of the sequence.
    """

    tick_hz: float = 10.0
    nothing: str = "_"
    answer_tokens: int = 30
    threshold: float | None = None
    marks: Marks = field(default_factory=Marks)

    def __post_init__(self) -> None:
        check_threshold(self.threshold)


def think_in_parallel(
    thinker: SystemThinker, heard: Sequence[str | None], config: ParallelConfig
) -> Timeline:
    """Let a model hear words and think about them at the same time.

    A token that is written in a tick is there at the end of that tick.

    Args:
        thinker: The model, at the start of a conversation.
        heard: The word that ends in each tick, or ``None``; the last is the mark of the end.
        config: Times and marks.

    Returns:
        The words, one thought with its chances, the interruption if there is one, and the answer.
    """
    marks = config.marks
    words: list[str] = []
    chances: list[float | None] = [None]
    token = config.nothing
    since: int | None = None  # tick of the interruption
    for tick in range(len(heard) + config.answer_tokens):
        words.append(token.strip())
        word = heard[tick] if tick < len(heard) else None
        thinker.tick(thinker.ids(token), None if word is None else thinker.ids(word))
        if since is None and tick < len(heard) and words[-1] == marks.interrupt:
            since = tick
        is_late = since is not None and tick - since >= config.answer_tokens
        if is_late or words[-1] == marks.stop:
            break
        proposal = thinker.propose()
        chances.append(proposal.interrupt)
        may_interrupt = since is None and tick + 1 < len(heard)
        token = _chosen(proposal, config, may_interrupt=may_interrupt)
    return _timeline(words, chances, heard, since, config)


def _chosen(proposal: Proposal, config: ParallelConfig, *, may_interrupt: bool) -> str:
    """Return the next token under the threshold."""
    if config.threshold is None or proposal.interrupt is None:
        return proposal.text
    if may_interrupt and proposal.interrupt >= config.threshold:
        return config.marks.interrupt
    is_mark = proposal.text.strip() == config.marks.interrupt
    return proposal.otherwise if is_mark else proposal.text


def _timeline(
    words: Sequence[str],
    chances: Sequence[float | None],
    heard: Sequence[str | None],
    since: int | None,
    config: ParallelConfig,
) -> Timeline:
    """Return the events of a conversation; ``since`` is the tick of the interruption."""
    tick_s = 1 / config.tick_hz
    events = [
        Event(start_s=tick * tick_s, end_s=(tick + 1) * tick_s, stream=USER, kind="word", text=word)
        for tick, word in enumerate(heard)
        if word is not None
    ]
    # After an interruption, or after the last word that was heard, the model answers.
    first = len(heard) if since is None else since + 1
    thought = [word for word in words[:first] if word not in (config.nothing, config.marks.stop)]
    answer = [word for word in words[first:] if word not in (config.nothing, config.marks.stop)]
    payload = {"chunk": 0, "tokens": len(thought), "chances": list(chances[:first])}
    has_stopped = words[-1] == config.marks.stop  # otherwise the answer was cut
    closed: Closed = "interruption"
    if since is None:
        closed = "model" if has_stopped and len(words) <= first else "clock"
    first_s = min(first, len(words)) * tick_s
    events.append(
        Event(
            start_s=0.0,
            end_s=first_s,
            stream=THOUGHT,
            kind="thought",
            text=" ".join(thought),
            payload={**payload, "closed": closed},
        )
    )
    if since is not None:
        events.append(
            Event(
                start_s=first_s,
                end_s=first_s,
                stream=AGENT,
                kind="interruption",
                payload={"chunk": 0, "by": AGENT},
            )
        )
    events.append(
        Event(
            start_s=first_s,
            end_s=len(words) * tick_s,
            stream=AGENT,
            kind="answer",
            text=" ".join(answer),
            payload={
                "chunk": 0,
                "tokens": len(answer),
                "closed": "model" if has_stopped else "budget",
            },
        )
    )
    return Timeline(events=tuple(events))

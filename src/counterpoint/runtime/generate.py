"""Continue a text, id by id."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from counterpoint.errors import UserError
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Session, Streaming
from counterpoint.runtime.sessions import Sessions
from counterpoint.runtime.threads import in_few_threads
from counterpoint.systems.contract import HasWhole, System


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

    On a CPU it computes with as many threads as make one session faster, which for a small model is
    one, unless the user has fixed their number (`threads_of_session`).

    Args:
        system: The model.
        prompt: At least one id, such as the start id of the tokeniser.
        sampling: How ids are chosen.
        num_ticks: Largest number of ids to generate.
        end_id: Id after which the text ends; it is yielded too.
        whole_from: Ids of another text, at least as many as the prompt has. The prompt is continued
            under the whole of that text, if the system has a coarse past that can be exchanged.
        sliding: Whether the prompt may be longer than the model's window.

    Yields:
        The ids that continue the prompt.

    Raises:
        UserError: The prompt is empty, too long, or has ids outside the vocabulary; or it cannot be
            continued under another whole.
    """
    if len(system.layout.predicted) > 1:
        ids = _part_alone(system, prompt, sampling, num_ticks, end_id, whole_from, sliding)
    else:
        sessions = Sessions(system, 1, sliding=sliding)
        session = sessions.start(0, sampling, end_id=end_id, max_sampled=num_ticks)
        ids = _text_alone(sessions, session, prompt, whole_from)
    yield from in_few_threads(system, ids) if isinstance(system, nn.Module) else ids


def _text_alone(
    sessions: Sessions, session: Session, prompt: Sequence[int], whole_from: Sequence[int] | None
) -> Iterator[int]:
    """Continue a prompt with a model that writes nothing but text."""
    if whole_from is not None:
        prompt = _feed_under(sessions, prompt, whole_from)
    sessions.feed({0: prompt})
    while not session.ended:
        sessions.step()
        yield session.sampled[-1]


def _part_alone(
    system: Streaming,
    prompt: Sequence[int],
    sampling: Sampling | None,
    num_ticks: int,
    end_id: int | None,
    whole_from: Sequence[int] | None,
    sliding: bool,
) -> Iterator[int]:
    """Continue a prompt with a model that also writes streams other than its part."""
    part = system.layout.part
    if whole_from is not None:
        raise UserError(
            "Only a model that writes its part alone can continue a text under another whole: this "
            f"one writes {', '.join(stream.name for stream in system.layout.predicted)}. Leave "
            "`whole_from` out."
        )
    if not sliding and len(prompt) > system.window_ticks:
        raise UserError(
            f"A prompt must fit the model's window of {system.window_ticks} ticks: got "
            f"{len(prompt)}. Shorten it, or allow sliding."
        )
    sessions = Sessions(system, 1, sliding=True)
    sessions.start(0, sampling, prompt={part.name: torch.tensor([list(prompt)], dtype=torch.long)})
    count = 0
    found = None
    while count < num_ticks and found != end_id:
        frame = sessions.step().get(0, {})
        if part.name in frame:  # the first steps may complete no frame
            found = int(frame[part.name])
            count += 1
            yield found


def _feed_under(
    sessions: Sessions, prompt: Sequence[int], whole_from: Sequence[int]
) -> Sequence[int]:
    """Feed all of a prompt except its last id, replace its whole, and return that last id."""
    model = sessions.system.plain()
    fed = len(prompt) - 1
    if fed > 0:
        sessions.feed({0: prompt[:fed]})
    if isinstance(model, HasWhole):
        donor = _donor_of_blocks(model, int(model.finished_blocks(sessions.state)[0]), whole_from)
    else:
        donor = _donor_of_ticks(model, fed, whole_from)
    sessions.system.wait()
    sessions.state = model.swap(sessions.state, donor.state)
    return prompt[fed:]


def _donor_of_ticks(model: System, fed: int, text: Sequence[int]) -> Sessions:
    """Return a session that has read as many ids of a text as the prompt has fed."""
    if len(text) < fed:
        raise UserError(
            "The text whose whole is used must be as long as the prompt before its last id, "
            f"{fed} ids: got {len(text)}. Give a longer text."
        )
    donor = Sessions(model, 1, sliding=True)
    donor.start(0)
    if fed > 0:
        donor.feed({0: list(text[:fed])})
    return donor


def _donor_of_blocks(model: Any, needed: int, text: Sequence[int]) -> Sessions:
    """Return a session that has finished as many blocks of a text as the prompt has."""
    usable = model.usable_blocks
    if needed < usable:
        raise UserError(
            f"To continue under another whole, a prompt must finish {usable} blocks or more before "
            f"its last id: got {needed}. Give a longer prompt."
        )
    donor = Sessions(model, 1, sliding=True)
    donor.start(0)
    rest = list(text)
    # Blocks may end early, so the donor is fed id by id until it has as many blocks as needed.
    while rest and int(model.finished_blocks(donor.state)[0]) < needed:
        donor.feed({0: [rest.pop(0)]})
    have = int(model.finished_blocks(donor.state)[0])
    if have < needed:
        raise UserError(
            f"The text whose whole is used must finish as many blocks as the prompt, {needed}: "
            f"got {have}. Give a longer text."
        )
    return donor

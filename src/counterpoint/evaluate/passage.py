"""A passage for a figure: what each byte read of the whole; and continuations of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from counterpoint.data.text.held_out import rows_batch
from counterpoint.data.text.shards import Unit
from counterpoint.data.text.tokenizer import Tokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.score import CountProgress, target_nats
from counterpoint.evaluate.whole import has_whole
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Streaming
from counterpoint.runtime.sessions import Sessions


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Some consecutive ticks of a unit.

    Attributes:
        source: Title and heading of the unit.
        first_tick: Tick of the first id; if the model has a whole, the first tick of a block.
        symbols: One short text for each id.
        bits: Bits that each id cost the model.
        edges: Edges of blocks, counted in ids; empty if the model has no whole.
        null: Attention on the null key when each id was predicted.
        earlier: Attention on all blocks before the passage.
        blocks: Attention on each block of the passage, by id.
    """

    source: str
    first_tick: int
    symbols: tuple[str, ...]
    bits: tuple[float, ...]
    edges: tuple[int, ...] = ()
    null: tuple[float, ...] = ()
    earlier: tuple[float, ...] = ()
    blocks: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """A prompt and its continuation by a model.

    Attributes:
        source: Unit of the prompt.
        prompt: Text of the prompt.
        whole_of: Unit whose whole was used; empty if the model has no whole.
        text: Text that the model wrote.
    """

    source: str
    prompt: str
    whole_of: str
    text: str


def unit_name(unit: Unit) -> str:
    """Return the heading of a unit, or the title of its document if it has none."""
    return unit.heading or unit.title


def read_passage(
    system: nn.Module, unit: Unit, tokenizer: Tokenizer, first_tick: int, num_ticks: int
) -> Passage:
    """Read a unit up to the end of a passage, and record what happened in the passage.

    Args:
        system: Any system; for a system with a whole its readings are recorded, too.
        unit: A unit longer than ``first_tick``.
        tokenizer: Converts ids to text.
        first_tick: Start of the passage; it is moved back to the start of a block, but not before
            the second block.
        num_ticks: Length of the passage; it is cut at the end of a block and of the unit.

    Raises:
        UserError: The passage does not lie within the unit.
    """
    model: Any = system
    reading = None
    batch = rows_batch([unit.ids], 1).to(next(system.parameters()).device)
    with torch.no_grad():
        logits = system(batch)["part"]
        if has_whole(system):
            reading = model.read_whole(batch)
    ends = range(len(unit.ids)) if reading is None else _block_ends(reading.finished[0])
    starts = [end + 1 for end in ends if end + 1 <= max(first_tick, ends[0] + 1)]
    first = starts[-1] if starts else 0
    edges = [end + 1 for end in ends if first <= end + 1 <= min(first + num_ticks, len(unit.ids))]
    if len(edges) < 2:
        raise UserError(
            f"A passage must lie within its unit: {unit_name(unit)!r} has {len(unit.ids)} ticks, "
            f"the passage starts at {first_tick}. Take a longer unit."
        )
    stop = edges[-1]
    # The state at tick t produces the id of tick t + 1.
    producing = slice(first - 1, stop - 1)
    bits = target_nats(logits, batch.targets["part"])[0, producing].double() / np.log(2)
    passage = Passage(
        source=unit_name(unit),
        first_tick=first,
        symbols=tuple(_symbol(tokenizer, number) for number in unit.ids[first:stop].tolist()),
        bits=tuple(bits.tolist()),
    )
    if reading is None:
        return passage
    attention = reading.attention[0, producing].double().cpu()
    own = 1 + len(starts)  # the null key, then the blocks before the passage
    return replace(
        passage,
        edges=tuple(edge - first for edge in edges),
        null=tuple(attention[:, 0].tolist()),
        earlier=tuple(attention[:, 1:own].sum(1).tolist()),
        blocks=tuple(map(tuple, attention[:, own : own + len(edges) - 1].tolist())),
    )


def _block_ends(finished: Int[Tensor, " T"]) -> list[int]:
    """Return the ticks at which blocks end."""
    return torch.diff(finished, prepend=finished.new_zeros(1)).nonzero()[:, 0].tolist()


def continue_prompts(
    system: Streaming,
    pairs: Sequence[tuple[Unit, Unit]],
    tokenizer: Tokenizer,
    *,
    prompt_ticks: int = 256,
    num_ticks: int = 240,
    sampling: Sampling | None = None,
    on_progress: CountProgress | None = None,
) -> tuple[Continuation, ...]:
    """Continue the beginnings of units under their own whole and under another unit's.

    All continuations of a prompt use the same random numbers. The whole is replaced once, between
    prompt and continuation; after that it grows with the text that is written.

    Args:
        system: The system. Without a whole it gives one continuation a prompt.
        pairs: Units of the prompts, each with the unit whose whole is used.
        tokenizer: Converts ids to text.
        prompt_ticks: Ticks of a prompt; fewer if a unit is shorter.
        num_ticks: Largest number of ids that are written.
        sampling: How ids are chosen.
        on_progress: Called after each prompt.
    """
    sampling = sampling or Sampling(temperature=0.7, seed=1)
    found = []
    for done, (unit, donor) in enumerate(pairs, 1):
        # The donor's text may have fewer blocks in the same length, so it has to be longer.
        length = min(prompt_ticks, len(unit.ids) - 1, len(donor.ids) * 3 // 4)
        own = unit.ids[:length].tolist()
        other = donor.ids.tolist()
        swaps = has_whole(system)
        wholes = [unit_name(unit), unit_name(donor)] if swaps else [""]
        sessions = Sessions(system, len(wholes), sliding=True)
        for row in range(len(wholes)):
            sessions.start(row, sampling, end_id=tokenizer.end_id, max_sampled=num_ticks)
        sessions.feed(dict.fromkeys(range(len(wholes)), own))
        if swaps:
            exchange_whole(sessions, [own, other])
        while sessions.running:
            sessions.step()
        for row, whole_of in enumerate(wholes):
            found.append(
                Continuation(
                    source=unit_name(unit),
                    prompt=tokenizer.decode(np.array(own)),
                    whole_of=whole_of,
                    text=tokenizer.decode(np.array(sessions[row].sampled)),
                )
            )
        if on_progress is not None:
            on_progress(done, len(pairs))
    return tuple(found)


def exchange_whole(sessions: Sessions, texts: Sequence[Sequence[int]]) -> None:
    """Let every row continue with the whole of another text, of as many blocks as it has itself.

    Raises:
        UserError: A text has fewer blocks.
    """
    system: Any = sessions.system
    lenders = Sessions(sessions.system, len(sessions), sliding=True)
    for row in range(len(sessions)):
        lenders.start(row)
    rest = [list(text) for text in texts]
    # Texts are fed id by id, because they may divide into blocks differently.
    while True:
        lent = system.finished_blocks(lenders.state)
        short = (lent < system.finished_blocks(sessions.state)).tolist()
        wanting = {row: [rest[row].pop(0)] for row, want in enumerate(short) if want and rest[row]}
        if not wanting:
            break
        lenders.feed(wanting)
    if any(short):  # such a donor would be taken as it stands if it had read as many ticks
        raise UserError(
            "A text whose whole is used must finish as many blocks as the session, "
            f"{system.finished_blocks(sessions.state).tolist()}: got {lent.tolist()}. Give a "
            "longer text."
        )
    sessions.state = system.swap(sessions.state, lenders.state)


def _symbol(tokenizer: Tokenizer, number: int) -> str:
    """Return the text of one id in as many characters; bytes of longer characters become dots."""
    if number == tokenizer.end_id:
        return "■"
    text = tokenizer.decode(np.array([number])).replace("\n", "↵")
    return "".join(c if c.isprintable() and c != "\ufffd" else "·" for c in text)

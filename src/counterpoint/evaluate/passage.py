"""A passage to look at: what each byte read of the whole, and continuations of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from counterpoint.data.shards import Unit
from counterpoint.data.tokenizer import Tokenizer
from counterpoint.evaluate.language_model import rows_batch, target_nats
from counterpoint.evaluate.whole import has_whole
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Sessions, Streaming


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Some ticks in a row of a unit.

    Attributes:
        source: Title and heading of the unit.
        first_tick: Tick of the first id, a multiple of ``block_ticks``.
        symbols: One short text for each id.
        bits: What the model paid for each id.
        block_ticks: Ticks of a block; 0 when the model has no whole.
        null: Attention on the null key when each id was produced.
        earlier: Attention on all blocks before the passage.
        blocks: Attention on each block of the passage, by id.
    """

    source: str
    first_tick: int
    symbols: tuple[str, ...]
    bits: tuple[float, ...]
    block_ticks: int = 0
    null: tuple[float, ...] = ()
    earlier: tuple[float, ...] = ()
    blocks: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """How a model went on.

    Attributes:
        source: Where the prompt is from.
        prompt: Its text.
        whole_of: Where the whole is from; empty when the model has none.
        text: What the model wrote.
    """

    source: str
    prompt: str
    whole_of: str
    text: str


def unit_name(unit: Unit) -> str:
    """Heading of a unit, or the title of its document where it has none."""
    return unit.heading or unit.title


def read_passage(
    system: nn.Module, unit: Unit, tokenizer: Tokenizer, first_tick: int, num_ticks: int
) -> Passage:
    """Read a unit up to the end of a passage and keep what happened in it.

    Args:
        system: Any system; one with a whole also shows what was read of it.
        unit: Longer than ``first_tick``.
        tokenizer: Spells ids.
        first_tick: Where the passage starts; moved back to the start of a block, at least to the
            second one.
        num_ticks: Its length; cut at the end of the unit.
    """
    model: Any = system
    reads = has_whole(system)
    block_ticks: int = model.layout.block_ticks if reads else 1
    first = max(first_tick // block_ticks, 1) * block_ticks
    stop = min(first + num_ticks, len(unit.ids)) // block_ticks * block_ticks
    if stop <= first:
        raise ValueError(
            f"A passage must lie within its unit: {unit_name(unit)!r} has {len(unit.ids)} ticks, "
            f"the passage starts at {first}. Take a longer unit."
        )
    batch = rows_batch([unit.ids[:stop]], block_ticks).to(next(system.parameters()).device)
    # The state at tick t produces the id of tick t + 1.
    producing = slice(first - 1, stop - 1)
    with torch.no_grad():
        nats = target_nats(system(batch)["part"], batch.targets["part"])[0, producing]
        attention = model.read(batch).attention[0, producing].double().cpu() if reads else None
    symbols = tuple(_symbol(tokenizer, number) for number in unit.ids[first:stop].tolist())
    bits = tuple((nats.double() / np.log(2)).tolist())
    if attention is None:
        return Passage(source=unit_name(unit), first_tick=first, symbols=symbols, bits=bits)
    own = 1 + first // block_ticks
    return Passage(
        source=unit_name(unit),
        first_tick=first,
        symbols=symbols,
        bits=bits,
        block_ticks=block_ticks,
        null=tuple(attention[:, 0].tolist()),
        earlier=tuple(attention[:, 1:own].sum(1).tolist()),
        blocks=tuple(map(tuple, attention[:, own : 1 + stop // block_ticks].tolist())),
    )


def continue_prompts(
    system: Streaming,
    pairs: Sequence[tuple[Unit, Unit]],
    tokenizer: Tokenizer,
    *,
    prompt_ticks: int = 256,
    num_ticks: int = 240,
    sampling: Sampling | None = None,
) -> tuple[Continuation, ...]:
    """Continue the beginnings of units, under their own whole and under another unit's.

    All continuations of a prompt draw the same random numbers. The whole is exchanged once, between
    prompt and continuation; after that it goes on to grow from what is written.

    Args:
        system: A system; one without a whole gives one continuation a prompt.
        pairs: Units for prompts, each with the unit that lends its whole.
        tokenizer: Spells ids.
        prompt_ticks: Ticks of a prompt; fewer when a unit is shorter.
        num_ticks: Most ids that are written.
        sampling: How ids are chosen.
    """
    sampling = sampling or Sampling(temperature=0.7, seed=1)
    found = []
    for unit, donor in pairs:
        length = min(prompt_ticks, len(unit.ids) - 1, len(donor.ids) - 1)
        own, other = (u.ids[:length].tolist() for u in (unit, donor))
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
    return tuple(found)


def exchange_whole(sessions: Sessions, texts: Sequence[Sequence[int]]) -> None:
    """Let every row go on with the whole of another text, as long as what it has read itself."""
    system: Any = sessions.system
    lenders = Sessions(sessions.system, len(sessions), sliding=True)
    for row in range(len(sessions)):
        lenders.start(row)
    lenders.feed(dict(enumerate(texts)))
    sessions.state = system.swap(sessions.state, lenders.state)


def _symbol(tokenizer: Tokenizer, number: int) -> str:
    """Text of one id that takes the room of its characters; bytes of longer characters are dots."""
    if number == tokenizer.end_id:
        return "■"
    text = tokenizer.decode(np.array([number])).replace("\n", "↵")
    return "".join(c if c.isprintable() and c != "\ufffd" else "·" for c in text)

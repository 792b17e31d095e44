"""Answers of a system to the items of a task."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.data.tasks.exported import item_of, read_item_of
from counterpoint.data.tasks.items import GroupsSymbols, Item, Replies
from counterpoint.data.tasks.source import item_batch, label_stream
from counterpoint.data.text.shards import Unit
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.evaluate.score import score, target_nats
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout
from counterpoint.systems.contract import System

BATCH_ITEMS = 32


def answer(
    system: nn.Module,
    items: Sequence[Item],
    batch_items: int = BATCH_ITEMS,
    *,
    true_whole: bool = False,
) -> Iterator[Replies]:
    """Yield the likeliest answers of a system, each symbol predicted after the true text before it.

    A system that writes a second stream writes it by itself, always the likeliest id: it does not
    get the labels of the items.

    Args:
        system: System that reads and writes bytes; see `TaskData.fits`.
        items: Items to answer.
        batch_items: Number of items in a batch.
        true_whole: Give the system the labels, to see what it could answer if its whole were right.
    """
    system = cast("System", system)
    writes_whole = label_stream(system.layout) is not None and not true_whole
    training = system.training
    system.eval()
    for first in range(0, len(items), batch_items):
        some = items[first : first + batch_items]
        batch = item_batch(some, system.layout).to(system.device)
        with torch.no_grad():
            likeliest = (_written(system, batch) if writes_whole else _scored(system, batch)).cpu()
        yield from (replies(item, likeliest[row].tolist()) for row, item in enumerate(some))
    system.train(training)


def may_be_told(layout: Layout, items: Sequence[Any]) -> bool:
    """Return whether a system writes a whole that items could give it; see `answer`."""
    return label_stream(layout) is not None and all(isinstance(item, Item) for item in items)


def respond(
    system: nn.Module, items: Sequence[Any], batch_items: int = BATCH_ITEMS
) -> Iterator[Any]:
    """Yield what a system replies to the items of any task; see `counterpoint.data.tasks.items`.

    Args:
        system: System that reads and writes bytes; see `TaskData.fits`.
        items: Items of an `AnyTask`: those that ask for answers get `Replies`, others `Nats`.
        batch_items: Number of items in a batch.
    """
    if all(isinstance(item, Item) for item in items):
        yield from answer(system, items, batch_items)
        return
    training = system.training
    system.eval()
    for first in range(0, len(items), batch_items):
        readings = [item.readings for item in items[first : first + batch_items]]
        flat = [one for own in readings for one in own]
        paid = iter(text_nats(system, [one.text for one in flat], [one.before for one in flat]))
        yield from (list(itertools.islice(paid, len(own))) for own in readings)
    system.train(training)


def answer_nats(
    system: nn.Module, items: Sequence[Item], batch_items: int = BATCH_ITEMS
) -> Iterator[list[float]]:
    """Yield the nats of the right answers of each item, each symbol after the true text before it.

    A system that writes a second stream gets the labels of the items.

    Args:
        system: System that reads and writes bytes, in evaluation mode.
        items: Items that are scored.
        batch_items: Number of items in a batch.
    """
    for item, paid in zip(items, _symbol_nats(system, items, batch_items), strict=True):
        yield [float(paid[one.start :][: len(one.text)].sum()) for one in item.answers]


def group_nats(
    system: nn.Module,
    task: GroupsSymbols,
    items: Sequence[Item],
    batch_items: int = BATCH_ITEMS,
) -> dict[str, float]:
    """Return the mean nats of the symbols of each group, each symbol after the true text before it.

    They mean something for a system that was trained on all symbols of its items.

    Args:
        system: See `answer_nats`.
        task: The task, which groups the symbols of its items.
        items: Items that are scored.
        batch_items: Number of items in a batch.
    """
    paid: dict[str, list[Tensor]] = {}
    for item, nats in zip(items, _symbol_nats(system, items, batch_items), strict=True):
        for name, places in task.groups(item).items():
            paid.setdefault(name, []).append(nats[list(places)])
    return {name: float(torch.cat(own).mean()) for name, own in sorted(paid.items())}


def _symbol_nats(
    system: nn.Module, items: Sequence[Item], batch_items: int
) -> Iterator[Float[Tensor, " n"]]:
    """Yield the nats of the symbols of each item; see `answer_nats`."""
    system = cast("System", system)
    part = system.layout.part.name
    for first in range(0, len(items), batch_items):
        some = items[first : first + batch_items]
        batch = item_batch(some, system.layout, "all").to(system.device)
        with torch.no_grad():
            paid = target_nats(system(batch)[part], batch.targets[part]).cpu()
        yield from (own[: len(item.text)] for own, item in zip(paid, some, strict=True))


def text_nats(
    system: nn.Module, texts: Sequence[str], contexts: Sequence[str] = ()
) -> list[Float[np.ndarray, " n"]]:
    """Return the nats of every byte of some texts.

    Args:
        system: System that reads and writes bytes.
        texts: Texts to score, each from the beginning of a document.
        contexts: Text to read before each text; nothing by default.
    """
    tokenizer = ByteTokenizer()
    before = [len(tokenizer.encode(context)) for context in contexts] or [0] * len(texts)
    whole = [first + text for first, text in zip(contexts or [""] * len(texts), texts, strict=True)]
    units = []
    for text in whole:
        ids = np.concatenate(
            ([tokenizer.start_id], tokenizer.encode(text), [tokenizer.end_id]), dtype=np.int64
        )
        units.append(Unit(title="", heading="", ids=ids, num_bytes=len(ids) - 2))
    layout = cast("System", system).layout
    scores = score(system, units, tokenizer.byte_lengths, block_ticks=layout.block_ticks)
    return [one.nats[first:-1] for one, first in zip(scores, before, strict=True)]


def answer_lines(system: nn.Module, lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the answers of a system to the lines of an exported task, as `scoring` reads them.

    Args:
        system: System that reads and writes bytes, in evaluation mode.
        lines: Lines of one task; see `counterpoint.data.tasks.exported`.
    """
    if "answers" in lines[0]:
        items = [item_of(line) for line in lines]
        # The lines have no true text for a whole that a system writes itself, so nothing to score
        # it by.
        is_alone = label_stream(cast("System", system).layout) is None
        costs = answer_nats(system, items) if is_alone else itertools.repeat(None)
        for line, given, nats in zip(lines, answer(system, items), costs, strict=False):
            told: dict[str, Any] = {"answers": [given[i] for i in range(len(line["answers"]))]}
            yield _head(line) | told | ({} if nats is None else {"nats": nats})
    else:
        asked = [read_item_of(line) for line in lines]
        for line, one, nats in zip(lines, asked, respond(system, asked), strict=True):
            yield _head(line) | one.reply(nats)


def _head(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": line["task"], "id": line["id"]}


def _scored(system: System, batch: Batch) -> Int[Tensor, "B T"]:
    """Return the likeliest id of the part after every tick, in one pass over whole rows."""
    part = system.layout.part
    return system(batch)[part.name].argmax(-1)


def _written(system: System, batch: Batch) -> Int[Tensor, "B T"]:
    """Return the same tick by tick: the part is given, and the system writes its own whole."""
    part = system.layout.part.name
    true = batch.ticks[part]
    column = {name: torch.full_like(ids[:, :1], UNSET_ID) for name, ids in batch.ticks.items()}
    column[part] = true[:, :1]
    state = system.initial_state(len(true))
    likeliest = []
    # Nothing is read after the last tick, so the id that is given there does not matter.
    for tick, following in enumerate([*true[:, 1:].unbind(1), true[:, -1]]):
        hidden, state = system.read(column, state)
        told = GivenPart(part, following, resting_streams(system.layout, tick + 1))
        written = system.write(hidden[:, -1], told, state)
        likeliest.append(told.likeliest)
        column = {name: ids[:, None] for name, ids in written.items()}
    return torch.stack(likeliest, 1)


def resting_streams(layout: Layout, column: int) -> set[str]:
    """Return the streams that have no element in a column."""
    return {
        stream.name
        for stream in layout.predicted
        if not schedule.may_stand(layout, stream, torch.tensor(column))
    }


class GivenPart:
    """Chooses the likeliest ids, but returns the given id for the part; a `Choose`.

    Attributes:
        part: Name of the part.
        likeliest: The likeliest ids of the part, (B,), after the part was chosen.
        given: The ids that are returned for it.
        resting: Streams without an element at this tick, which get unset ids.
    """

    def __init__(self, part: str, given: Int[Tensor, " B"], resting: Collection[str]) -> None:
        self.part = part
        self.likeliest = given
        self.given = given
        self.resting = resting

    def __call__(
        self, stream: str, codebook: int, scores: Float[Tensor, "B V"]
    ) -> Int[Tensor, " B"]:
        """Choose the ids of one element."""
        likeliest = scores.argmax(-1)
        if stream in self.resting:
            return torch.full_like(likeliest, UNSET_ID)
        if stream != self.part:
            return likeliest
        self.likeliest = likeliest
        return self.given


def replies(item: Item, likeliest: list[int]) -> Replies:
    """Return the symbols at the answers: the id after a tick is the symbol with its number.

    Args:
        item: The item.
        likeliest: The likeliest id after every tick.
    """
    return {
        number: "".join(
            chr(symbol) if symbol < 128 else "?"
            for symbol in likeliest[one.start : one.start + len(one.text)]
        )
        for number, one in enumerate(item.answers)
    }

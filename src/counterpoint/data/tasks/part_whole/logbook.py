"""T4: a log of events; which entity is most frequent, and what is its last value?"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import ClassVar

from counterpoint.data.tasks.items import (
    ExactMatch,
    Item,
    ItemPolicy,
    Replies,
    Writer,
    draw,
    is_scored,
)
from counterpoint.errors import UserError

_VALUES = "0123456789abcdef"
_MOST_LOGS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Logbook(ExactMatch):
    """Say the last value of the entity that is most frequent in the whole log.

    The log has events, each an entity and a value, and one third of it is misleading. The
    questions are "joint", the last value of the most frequent entity, or in some logs "whole",
    that entity (not both, because either answer would reveal the other); and "part", the last
    value of a named entity. In one third of the log another entity is most frequent than in the
    whole log. In half of the logs this is the last third, and only these logs count as "joint"
    and "whole"; in the others it is the first or the middle third ("joint, end agrees"), so
    that no third can be trusted. The last event is not one of the most frequent entity. The
    whole is the most frequent entity so far.

    With a register, entities have one value each, which stands before the log, and the events are
    entities alone: the detail is then far from the question.

    Attributes:
        num_events: Number of events.
        num_entities: Number of entities; at most 26.
        margin: Number of events by which the most frequent entity is ahead.
        misleading: Thirds (0, 1, 2) one of which is misleading; a third that is listed twice is
            twice as likely.
        whole_share: Share of the logs that ask for the whole.
        num_named: Number of entities whose value is asked by name; fewer if the log has fewer.
        least_events: Smallest number of events of a log that is learned from; ``None`` means that
            all logs have `num_events`. Scored logs always have as many.
        register: Whether the values stand in a register before the log.
    """

    name: ClassVar[str] = "logbook"
    primary: ClassVar[str] = "joint"
    num_events: int = 48
    num_entities: int = 6
    margin: int = 2
    misleading: tuple[int, ...] = (0, 1, 2, 2)
    whole_share: float = 0.2
    num_named: int = 1
    least_events: int | None = None
    register: bool = False

    def __post_init__(self) -> None:
        if self.num_events % 3 or not 3 <= self.num_entities <= 26:
            raise UserError(
                "A log must have 3 to 26 entities and a number of events that 3 divides: got "
                f"{self.num_entities} and {self.num_events}."
            )
        if not self.misleading or not set(self.misleading) <= {0, 1, 2}:
            raise UserError(f"`misleading` must be some of 0, 1 and 2: got {self.misleading}.")
        least = self.num_events if self.least_events is None else self.least_events
        if least % 3 or not 3 <= least <= self.num_events:
            raise UserError(
                f"`least_events` must be 3 to `num_events`, and 3 must divide it: got {least}."
            )
        if not 1 <= self.num_named < self.num_entities:
            raise UserError(
                "`num_named` must be at least 1 and less than the number of entities: got "
                f"{self.num_named}."
            )

    @property
    def most_symbols(self) -> int:
        """Largest number of symbols of an item; see `ScoredTask.most_symbols`."""
        log = 2 * self.num_events + 3 * self.num_entities if self.register else 3 * self.num_events
        return log + len("J=0") + self.num_named * len(" PA=0")

    def item(self, seed: int, number: int) -> Item:
        """Return the item with a number; see `ScoredTask.item`."""
        rng = draw(seed, number)
        entities = ascii_uppercase[: self.num_entities]
        leader, misleader = rng.sample(entities, 2)
        misleading = rng.choice(self.misleading)
        size = self._size(seed, rng)
        suffix = "" if misleading == 2 else ", end agrees"
        for _ in range(_MOST_LOGS):
            who = [
                entity
                for third in range(3)
                for entity in self._third(rng, size, misleader if third == misleading else leader)
            ]
            if self._holds(who, leader, misleader, misleading):
                break
        else:
            raise UserError(
                f"`margin` must be such that a log can be found: of {_MOST_LOGS:,} logs none has "
                f"{self.margin}, with {size} events of {self.num_entities} entities. "
                "Lower it, or take fewer entities."
            )
        values: dict[str, str] = {}
        if self.register:
            values = dict(zip(entities, rng.choices(_VALUES, k=len(entities)), strict=True))
        events = [(one, values.get(one) or rng.choice(_VALUES)) for one in who]
        last = dict(events)
        asked = self._named(rng, [entity for entity in sorted(last) if entity != leader])
        writer = Writer()
        counts: Counter[str] = Counter()
        for entity in rng.sample(sorted(values), len(values)):
            writer.write(f"{entity}{values[entity]} ")
        for entity, value in events:
            writer.write(f"{entity} " if self.register else f"{entity}{value} ")
            counts[entity] += 1
            writer.label(max(counts, key=counts.__getitem__))  # of two, the one that came first
        if rng.random() < self.whole_share:
            writer.write("W=")
            writer.answer(f"whole{suffix}", leader)
        else:
            writer.write("J=")
            writer.answer(f"joint{suffix}", last[leader])
        for entity in asked:
            writer.write(f" P{entity}=")
            writer.answer("part", last[entity])
        return writer.item(events=events, asked=asked, register=values)

    def policies(self) -> Mapping[str, ItemPolicy]:
        """Return policies by name; see `ScoredTask.policies`."""
        third = self.num_events // 3  # of the scored logs

        def reads(first: int, stop: int | None) -> ItemPolicy:
            def policy(item: Item, rng: random.Random) -> Replies:
                return _answers(item, item.facts["events"][first:stop], rng)

            return policy

        def misled(num_seen: int) -> ItemPolicy:
            """Know that the last third misleads: neither its leader nor its end is the answer."""

            def policy(item: Item, rng: random.Random) -> Replies:
                seen = item.facts["events"][-num_seen:]
                wrong = (_newest_leader(seen[-third:]), seen[-1][0])
                others = [event for event in seen if event[0] not in wrong]
                return _answers(item, seen, rng, _newest_leader(others or seen))

            return policy

        def last_value(item: Item, rng: random.Random) -> Replies:
            return dict.fromkeys(range(len(item.answers)), item.facts["events"][-1][1])

        return {
            "oracle": reads(0, None),
            "last third": reads(-third, None),
            "last two thirds": reads(-2 * third, None),
            "first two thirds": reads(0, 2 * third),
            "last third, which misleads": misled(third),
            "last half, whose end misleads": misled(self.num_events // 2),
            "last two thirds, whose end misleads": misled(2 * third),
            "last value": last_value,
        }

    def _size(self, seed: int, rng: random.Random) -> int:
        """Return the number of events of a log."""
        if self.least_events is None or is_scored(seed):
            return self.num_events
        return rng.randrange(self.least_events, self.num_events + 1, 3)

    def _named(self, rng: random.Random, entities: list[str]) -> list[str]:
        """Return the entities whose value is asked by name."""
        if self.num_named == 1:
            return [rng.choice(entities)]
        return rng.sample(entities, min(self.num_named, len(entities)))

    def _third(self, rng: random.Random, num_events: int, favourite: str) -> list[str]:
        entities = ascii_uppercase[: self.num_entities]
        weights = [3 if entity == favourite else 1 for entity in entities]
        return rng.choices(entities, weights, k=num_events // 3)

    def _holds(self, who: list[str], leader: str, misleader: str, misleading: int) -> bool:
        size = len(who) // 3
        third = who[misleading * size : (misleading + 1) * size]
        return (
            _lead(who, leader) >= self.margin
            and _lead(third, misleader) >= self.margin
            and who[-1] != leader
        )


def _lead(who: list[str], entity: str) -> int:
    """Return the number of events by which an entity is ahead of all others."""
    counts = Counter(who)
    others = (count for one, count in counts.items() if one != entity)
    return counts[entity] - max(others, default=0)


def _newest_leader(events: list[tuple[str, str]]) -> str:
    """Return the most frequent entity; of several, the one that came last."""
    return Counter(entity for entity, _ in reversed(events)).most_common(1)[0][0]


def _answers(
    item: Item, events: list[tuple[str, str]], rng: random.Random, leader: str | None = None
) -> Replies:
    """Return the answers that follow from these events alone, and from the leader if it is told."""
    register = item.facts["register"]
    last = dict(events)
    if leader is None:
        counts = Counter(entity for entity, _ in events)
        most = max(counts.values())
        leader = rng.choice([entity for entity in sorted(counts) if counts[entity] == most])
    whole = item.answers[0].kind.startswith("whole")
    named = [
        register.get(entity) or last.get(entity) or rng.choice(_VALUES)
        for entity in item.facts["asked"]
    ]
    return {0: leader if whole else last[leader]} | dict(enumerate(named, 1))

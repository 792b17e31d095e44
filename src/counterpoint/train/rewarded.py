"""Questions to which a model writes solutions, as the data of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from counterpoint.config_json import encode
from counterpoint.data.loader import HeldOutRows
from counterpoint.data.source import ALONE, Preparation
from counterpoint.data.tasks.prompts import END_ID, item_prompt
from counterpoint.data.tasks.reasoning.corpora import ReasoningTask
from counterpoint.data.tasks.reasoning.gym import GymReasoning
from counterpoint.data.tasks.reasoning.gym_verifier import gym_reward
from counterpoint.data.tasks.reasoning.item import ReasoningItem, answer_reward, process_reward
from counterpoint.data.tasks.source import PreparedTask, TaskData
from counterpoint.data.tasks.verify import TimedVerifier, check_limit
from counterpoint.digests import json_digest
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams.spec import Layout
from counterpoint.systems.contract import System
from counterpoint.train.reinforce import GroupConfig
from counterpoint.train.rollout_source import Asked, RolloutSource

_VERIFIERS = {"answer": answer_reward, "process": process_reward}


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class RewardedData:
    """Questions to which a model writes solutions, and how these are rewarded; a `DataSource`.

    Attributes:
        task: Corpus of the questions; their own solutions are not read.
        group: Settings of GRPO.
        reward: 1 for a right "answer", or only after all steps that are needed, each valid:
            "process". Items of reasoning-gym are rewarded by their own score.
        num_items: Number of questions, asked in turn.
        num_held_out: Number of items for evaluation, which are never asked.
        seed: Seed of the questions.
        limit_s: Seconds that the judgement of a solution may take.
        folder: Folder for solutions from which several steps learn; see `RolloutSource`.
    """

    task: ReasoningTask | GymReasoning
    group: GroupConfig = field(default_factory=GroupConfig)
    reward: Literal["answer", "process"] = "answer"
    num_items: int = 1_000_000
    num_held_out: int = 0
    seed: int = 0
    limit_s: float = 1.0
    folder: str = ""

    def __post_init__(self) -> None:
        for name, least in (("num_items", 1), ("num_held_out", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"`{name}` must be >= {least}: got {getattr(self, name)}.")
        check_limit(self.limit_s)

    @staticmethod
    def fits(layout: Layout) -> bool:
        """Return whether a system reads bytes and hears nothing; see `DataSource.fits`."""
        return TaskData.fits(layout) and not layout.heard

    def num_ticks(self, layout: Layout) -> int:
        """Return the largest number of ticks of a row; see `DataSource.num_ticks`."""
        return self.questions.num_ticks(layout) + self.group.most_ticks

    @property
    def questions(self) -> TaskData:
        """The questions with their own solutions, as data to read."""
        return TaskData(task=self.task, num_held_out=self.num_held_out, seed=self.seed)

    def prepare(self, system: System, how: Preparation = ALONE) -> "PreparedRewards":
        """Return the questions for a system; nothing is cached; see `DataSource.prepare`."""
        return PreparedRewards(self, self.questions.prepare(system, how))


class PreparedRewards:
    """Questions for one system; a `counterpoint.data.source.PreparedSource`."""

    def __init__(self, data: RewardedData, task: PreparedTask) -> None:
        self.data = data
        self.task = task

    def batches(
        self, batch_rows: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> RolloutSource:
        """Return the source of batches, which asks the model that is attached to it.

        Raises:
            UserError: The rows are no whole groups for each process.
        """
        data = self.data
        size = data.group.group_size * world_size
        if batch_rows % size:
            raise UserError(
                f"`batch_rows` must be a multiple of {size}, `group_size` times the number of "
                f"processes: got {batch_rows}."
            )
        is_gym = isinstance(data.task, GymReasoning)
        verify = gym_reward if is_gym else _VERIFIERS[data.reward]
        return RolloutSource(
            self._ask,
            TimedVerifier(verify, data.limit_s),
            data.group,
            batch_rows=batch_rows,
            end_id=END_ID,
            seed=seed,
            folder=Path(data.folder) if data.folder else None,
        )

    def _ask(self, number: int) -> Asked:
        item = self.data.task.item(self.data.seed, number % self.data.num_items)
        if not isinstance(item, ReasoningItem):
            raise UserError(
                f"`task` must ask questions: {self.data.task.name!r} is text without questions. "
                "Take a `Reasoning`."
            )
        return Asked(item, item_prompt(item, self.task.layout))

    def held_out_units(self) -> HeldOutRows | None:
        """Return the held-out items with their own solutions, or ``None`` if there are none."""
        return self.task.held_out_units()

    def describe(self) -> str:
        """Return a phrase that says how much data there is."""
        return f"{self.data.num_items} questions of {self.data.task.name}"

    @property
    def fingerprint(self) -> Mapping[str, Mapping[str, Any]]:
        """Digest of the questions and of their reward; how they are learned may be changed."""
        data = self.data
        facts = {
            "task": encode(data.task),
            "first": data.task.item(data.seed, 0).text,
            "reward": data.reward,
            "seed": data.seed,
            "num_items": data.num_items,
        }
        return {"items": {"train": json_digest(facts)}}

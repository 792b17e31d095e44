"""Batches of what the model itself writes, with its rewards: the source of `reinforce`."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from counterpoint.data.tasks.items import Item
from counterpoint.data.tasks.prompts import written_text
from counterpoint.data.tasks.verify import Verified
from counterpoint.errors import UserError
from counterpoint.files import write_tensors
from counterpoint.streams import schedule
from counterpoint.streams.batch import Amount, Batch
from counterpoint.streams.spec import UNSET_ID, Ticks
from counterpoint.systems.contract import System
from counterpoint.train.distributed import World, copy_weights, current_world
from counterpoint.train.patience import NoRewardError as NoRewardError
from counterpoint.train.patience import Patience
from counterpoint.train.reinforce import (
    ADVANTAGES,
    FAILED,
    REWARDS,
    GroupConfig,
    GroupObjective,
    group_advantages,
    old_name,
)


class Rollouts(NamedTuple):
    """What a model wrote after some prompts.

    Attributes:
        content: Prompts and what was written after them, in content order, by written stream: ids
            (B, T) or (B, T, K), counted in each stream's own steps.
        written: The elements that the model chose, by stream: (B, T).
        texts: Ids of the part after the prompt, with the id that ends it, by row.
        ended: Whether the row came to its end.
    """

    content: Ticks
    written: Mapping[str, Bool[Tensor, "B _T"]]
    texts: Sequence[Sequence[int]]
    ended: Bool[Tensor, " B"]

    def to(self, device: torch.device | str) -> "Rollouts":
        """Return a copy of the rollouts on another device."""
        return self._replace(
            content={name: ids.to(device) for name, ids in self.content.items()},
            written={name: chosen.to(device) for name, chosen in self.written.items()},
            ended=self.ended.to(device),
        )


def join_rollouts(parts: Sequence[Rollouts], part: str) -> Rollouts:
    """Return the rows of several rollouts below each other, as long as the longest.

    Args:
        parts: Rollouts of one system, at least one.
        part: Name of the stream of the part, in which any id may stand behind the end.
    """

    def together(every: Sequence[Tensor], behind: int) -> Tensor:
        return pad_sequence([row for rows in every for row in rows], True, behind)

    return Rollouts(
        content={
            name: together([one.content[name] for one in parts], 0 if name == part else UNSET_ID)
            for name in parts[0].content
        },
        written={
            name: together([one.written[name] for one in parts], False) for name in parts[0].written
        },
        texts=[text for one in parts for text in one.texts],
        ended=torch.cat([one.ended for one in parts]),
    )


ROLLOUTS = "rollouts"
"""Name of the solutions in the ledger: as sources go, each is an item that was not read before."""


@runtime_checkable
class RollOut(Protocol):
    """Lets a model write; see `counterpoint.runtime.rollouts.roll_out`."""

    def __call__(
        self,
        system: System,
        prompts: Sequence[Ticks],
        seeds: Sequence[int],
        *,
        temperature: float,
        most_ticks: int,
        end_id: int,
    ) -> Rollouts:
        """Return what the model writes after each prompt, until the end id of its part."""


class Asked(NamedTuple):
    """A question as a system is asked it.

    Attributes:
        item: The item, for the verifier.
        prompt: Content of the written streams before the solution, one row.
    """

    item: Item
    prompt: Ticks


Verify = Callable[[Item, str], Verified]
"""Judges a solution, such as `counterpoint.data.tasks.verify.TimedVerifier`."""


class RolloutSource:
    """Batches of solutions that the attached model writes; a `BatchSource`.

    A round of solutions is a function of the seed, its number and the weights with which it was
    written, so a resumed run goes on bit for bit. If several steps learn from a round, the round is
    also kept in `folder`, because a run may be resumed between them; if it is missing there, the
    round is written anew.

    Each of several processes writes and judges the solutions of some of the questions, with a whole
    copy of the weights, `writer`. What they have written is then put together in all of them, so
    that advantages, ends of the training and kept rounds are those of one process, and each learns
    from its own rows. The first process counts what the round holds.

    Args:
        ask: Returns the question with a number.
        verify: Judges solutions; the text is what was written in the part, as bytes.
        config: Settings of GRPO.
        batch_rows: Number of solutions of a step, a multiple of the group's size.
        end_id: Id of the part with which a solution ends.
        seed: Seed of the solutions.
        folder: Folder for the rounds; needed if `num_updates` is above 1.
        roll_out: Lets the model write: `counterpoint.runtime.rollouts.roll_out`, which may also be
            set later.

    Raises:
        UserError: The rows are no whole groups, or there is no folder where one is needed.
    """

    def __init__(
        self,
        ask: Callable[[int], Asked],
        verify: Verify,
        config: GroupConfig,
        *,
        batch_rows: int,
        end_id: int,
        seed: int = 0,
        folder: Path | None = None,
        roll_out: RollOut | None = None,
    ) -> None:
        if batch_rows % config.group_size:
            raise UserError(
                f"`batch_rows` must be a multiple of `group_size`, {config.group_size}: got "
                f"{batch_rows}."
            )
        if config.num_updates > 1 and folder is None:
            raise UserError(
                "A run with `num_updates` above 1 must have a folder for the solutions from which "
                "several steps learn: got none. Name a folder, or take 1."
            )
        self.config = config
        self._ask = ask
        self.roll_out = roll_out
        self.writer: System | None = None
        self._verify = verify
        self._batch_rows = batch_rows
        self._end_id = end_id
        self._seed = seed
        self._folder = folder
        self._objective: GroupObjective | None = None
        self._world = World()
        self._round = -1
        self._batch: Batch | None = None
        self._patience = Patience(rounds=config.patience, group_size=config.group_size)

    def attach(self, model: nn.Module) -> None:
        """Store the model, and a copy of it as it is now as the reference.

        Raises:
            UserError: The model hears something, or its weights are divided among processes and
                there is no `writer`.
        """
        system = cast("System", model)
        if system.layout.heard:
            raise UserError(
                "Only a system that hears nothing can be reinforced: this one hears "
                f"{', '.join(stream.name for stream in system.layout.heard)}."
            )
        self._world = current_world(system.device)
        if self._world.size > 1 and self.writer is None:
            raise UserError(
                "A source of rollouts must have `writer`, a whole copy of the model, in several "
                "processes: it has none. Set it before `shard`, or train with `train_run`."
            )
        reference = None
        if self.config.kl_weight:
            reference = copy.deepcopy(self._whole(system)).eval().requires_grad_(False)
        self._objective = GroupObjective(system, self.config, reference)

    def keep_reference(self, path: Path, begins: bool) -> None:
        """Keep the reference for later calls, or take the kept one instead of the attached model.

        Args:
            path: File of its weights.
            begins: Whether the training begins: then the attached model is the reference.

        Raises:
            UserError: The file is needed and there is none.
        """
        reference = self.objective.reference
        if reference is None:
            return
        if begins:
            if not self._world.is_first:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, dict(reference.state_dict()))
            return
        if not path.is_file():
            raise UserError(
                f"{path} must hold the model with which reinforcement began: there is no such "
                "file. Begin the run in another folder."
            )
        reference.load_state_dict(load_file(path))

    @property
    def progress(self) -> Any:
        """Rounds that taught nothing; see `counterpoint.data.source.HasProgress`."""
        return self._patience.progress

    def go_on(self, progress: Any) -> None:
        """Go on from what a checkpoint has kept; see `counterpoint.data.source.HasProgress`."""
        self._patience.go_on(progress)

    @property
    def objective(self) -> GroupObjective:
        """The loss of the batches; see `counterpoint.train.loop.HasObjective`."""
        if self._objective is None:
            raise AssertionError("a source is attached before it is used")
        return self._objective

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, written by the model as it is at the step's round.

        Raises:
            NoRewardError: The last `patience` rounds taught nothing; see `Patience`.
        """
        number = step // self.config.num_updates
        is_repeated = step % self.config.num_updates > 0
        if number != self._round or self._batch is None:
            kept = self._file(number)
            is_kept = is_repeated and kept is not None and kept.is_file()
            if kept is not None and self._world.from_first(is_kept):
                every = _read(kept)
            else:
                every = self._write_round(number)
                if kept is not None and self._world.is_first:
                    _keep(kept, every)
            self._batch = self._own(every)
            self._round = number
        if not is_repeated:
            return self._batch
        amounts = {name: one._replace(unique_items=0) for name, one in self._batch.amounts.items()}
        return replace(self._batch, amounts=amounts)

    def _file(self, number: int) -> Path | None:
        if self._folder is None or self.config.num_updates == 1:
            return None
        return self._folder / f"round_{number:08d}.safetensors"

    def _write_round(self, number: int) -> Batch:
        if self.roll_out is None:
            raise UserError(
                "A source of rollouts must have `roll_out` before its first batch: it has none. "
                "Set it to `counterpoint.runtime.rollouts.roll_out`, or train with `train_run`."
            )
        system = self._whole(self.objective.system)
        count = self._batch_rows // self.config.group_size
        questions = [self._ask(number * count + place) for place in range(count)]
        each = [one for one in questions for _ in range(self.config.group_size)]
        seeds = _seeds(self._seed, number, len(each))
        training = system.training
        system.eval()
        own = self._share(len(each))
        rollouts = self.roll_out(
            system,
            [one.prompt for one in each[own]],
            seeds[own],
            temperature=self.config.temperature,
            most_ticks=self.config.most_ticks,
            end_id=self._end_id,
        )
        told = [
            self._verify(question.item, written_text(ids))
            for question, ids in zip(each[own], rollouts.texts, strict=True)
        ]
        rollouts, told = self._together(rollouts, told)
        batch = rollout_batch(system, rollouts, told, self.config)
        teaches = bool(batch.numbers[ADVANTAGES][rollouts.ended.cpu()].any())
        batch = batch.to(system.device)
        if self.config.num_updates > 1:
            with torch.no_grad():
                old = self.objective.log_probabilities(system, batch.rows(own))
            numbers = {old_name(name): self._all_rows(log) for name, log in old.items()}
            batch = replace(batch, numbers={**batch.numbers, **numbers})
        system.train(training)
        self._patience.watch(number, told, teaches=teaches)
        return batch

    def _whole(self, system: System) -> System:
        """Return the model with all its weights in this process; all processes must call this."""
        if self._world.size == 1 or self.writer is None:
            return system
        copy_weights(system, self.writer)
        return self.writer

    def _share(self, num_rows: int) -> slice:
        """Return which rows of a round are those of this process."""
        share = num_rows // self._world.size
        return slice(self._world.rank * share, (self._world.rank + 1) * share)

    def _own(self, batch: Batch) -> Batch:
        """Return this process's rows of a round; the first process has the counts of all rows."""
        if self._world.size == 1:
            return batch
        rows = batch.rows(self._share(len(batch.document_start)))
        if self._world.is_first:
            return rows
        return replace(rows, size=0, amounts={name: Amount() for name in batch.amounts})

    def _all_rows(self, own: Tensor) -> Tensor:
        """Return the rows of all processes."""
        if self._world.size == 1:
            return own
        return torch.cat(self._world.from_all(own.cpu())).to(own.device)

    def _together(
        self, rollouts: Rollouts, outcomes: list[Verified]
    ) -> tuple[Rollouts, list[Verified]]:
        """Return what all processes wrote, with its outcomes, in every process."""
        if self._world.size == 1:
            return rollouts, outcomes
        every = self._world.from_all((rollouts.to("cpu"), outcomes))
        part = self.objective.system.layout.part.name
        told = [outcome for _, own in every for outcome in own]
        return join_rollouts([own for own, _ in every], part).to(rollouts.ended.device), told


def rollout_batch(
    system: System, rollouts: Rollouts, outcomes: Sequence[Verified], config: GroupConfig
) -> Batch:
    """Return rollouts as a batch whose targets are the elements that the model chose.

    Args:
        system: The system that wrote them.
        rollouts: What it wrote; rows that did not end carry no loss.
        outcomes: What each row is worth.
        config: Settings of GRPO; rows of a group stand together.
    """
    batch = schedule.lay_out(system.layout, rollouts.content)
    chosen = {}
    for name, elements in rollouts.content.items():
        written = rollouts.written[name] & rollouts.ended[:, None]
        wide = written[..., None] if elements.ndim == 3 else written
        chosen[name] = torch.where(wide, elements, UNSET_ID)
    # A document may begin with an element that nothing predicts; it is never chosen.
    targets = schedule.lay_out(system.layout, chosen).targets
    rewards = torch.tensor([outcome.reward for outcome in outcomes])
    grouped = rewards.view(-1, config.group_size)
    numbers = {
        ADVANTAGES: group_advantages(grouped, config.scale).flatten(),
        REWARDS: rewards,
        FAILED: torch.tensor([float(bool(outcome.failure)) for outcome in outcomes]),
    }
    size = sum(len(ids) for ids in rollouts.texts)
    part = system.layout.part.name
    amount = Amount(
        rows=len(outcomes),
        tokens=size,
        targets=int(schedule.trained(system.layout[part], targets[part]).sum()),
        items=len(outcomes),
        unique_items=len(outcomes),
    )
    return replace(
        batch,
        targets=targets,
        numbers=numbers,
        size=size,
        unit="byte",
        amounts={ROLLOUTS: amount},
    )


def _seeds(seed: int, number: int, count: int) -> list[int]:
    """Return seeds of the rows of a round, different in all rounds and seeds."""
    words = np.random.SeedSequence((seed, number)).generate_state(count, np.uint64)
    return [int(word >> np.uint64(1)) for word in words]


def _parts(batch: Batch) -> Mapping[str, Mapping[str, Tensor]]:
    return {
        "ticks": batch.ticks,
        "targets": batch.targets,
        "elements": batch.elements,
        "numbers": batch.numbers,
    }


def _keep(path: Path, batch: Batch) -> None:
    """Write a round, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{part}/{name}": tensor
        for part, own in _parts(batch).items()
        for name, tensor in own.items()
    }
    rest = {
        "document_start": batch.document_start,
        "size": torch.tensor(batch.size),
        "amount": torch.tensor(batch.amounts[ROLLOUTS]),
    }
    write_tensors(path, {**tensors, **rest})


def _read(path: Path) -> Batch:
    tensors = load_file(path)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, slash, name = key.partition("/")
        if slash:
            parts.setdefault(part, {})[name] = tensor
    return Batch(
        ticks=parts["ticks"],
        targets=parts["targets"],
        elements=parts.get("elements", {}),
        document_start=tensors["document_start"],
        size=int(tensors["size"]),
        numbers=parts["numbers"],
        amounts={ROLLOUTS: Amount(*tensors["amount"].tolist())},
    )

"""A grid: arms × tasks × learning rates × seeds under one budget."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from counterpoint.data.tasks.items import AnyTask
from counterpoint.data.tasks.named import learned_data, named_task, task_names
from counterpoint.errors import UserError
from counterpoint.evaluate.report.grid_findings import ArmCost
from counterpoint.files import check_name
from counterpoint.progress import Progress
from counterpoint.recipes.grid_blocks import on_task
from counterpoint.systems import SystemConfig, sketch
from counterpoint.systems.contract import mean_training_flops, state_bytes
from counterpoint.train.config import TrainConfig
from counterpoint.train.optimizer import check_prefixes


@dataclass(frozen=True, kw_only=True, slots=True)
class GridArm:
    """A system of a grid.

    Attributes:
        name: Name in tables.
        system: Config of the system.
        unmatched: Reason why it need not meet the budget, such as "a ceiling"; empty if it must.
        lr_factors: Factors of the cell's learning rate by part of the system; see
            `OptimizerConfig.lr_factors`, whose prefixes these replace or join.
    """

    name: str
    system: SystemConfig
    unmatched: str = ""
    lr_factors: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        check_name("arms.name", self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Largest differences from the first arm, as shares; with ``None`` they are only printed.

    Attributes:
        parameters: Limit for the number of trainable parameters.
        flops: Limit for the training FLOPs a tick. The optimiser of a grid is always AdamW, which
            has no matrix products.
        state: Limit for the state bytes of a session.
    """

    parameters: float | None = 0.02
    flops: float | None = 0.05
    state: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A comparison of arms on tasks.

    Attributes:
        name: Name of the grid and of its folder.
        purpose: What the grid is to show, in one sentence.
        arms: Systems; budgets are compared with the first one.
        tasks: Names in `counterpoint.data.tasks.named.task_names`.
        train: Training of each cell by AdamW; its learning rate and seed are replaced by those of
            the cell.
        learning_rates: Learning rates from which one is chosen for each arm and task.
        seeds: Training seeds that are reported.
        tuning_seeds: Seeds on which rates are chosen; none of them is reported.
        tuning_share: Share of the steps that a run for the choice of a rate takes.
        num_items: Number of items that are scored, or all that a real task has if it has fewer.
        limits: The budget.
        smaller: Recipe of the next smaller declared size, which ``--minutes`` runs where this one
            does not fit; empty if there is none.
        is_first_look: Whether it is too small for a verdict, whatever its runs show.
        data: Folder with `books`, `trec-qc` and `sgd-mini`, for tasks with real texts; without
            books the passages are the Bible's. A study that is continued must find the same texts,
            in this or another place.
    """

    name: str
    arms: tuple[GridArm, ...]
    tasks: tuple[str, ...]
    train: TrainConfig
    purpose: str = ""
    learning_rates: tuple[float, ...] = (2e-3,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tuning_seeds: tuple[int, ...] = (100,)
    tuning_share: float = 0.25
    num_items: int = 1000
    limits: Limits = field(default_factory=Limits)
    smaller: str = ""
    is_first_look: bool = False
    data: str = ""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) != len(names):
            raise UserError(f"A grid must have arms with different names: got {names}.")
        known = task_names()
        if not self.tasks or not set(self.tasks) <= set(known):
            raise UserError(f"`tasks` must be some of {', '.join(known)}: got {self.tasks}.")
        rates = tuple(f"{rate:g}" for rate in self.learning_rates)  # as in the names of cells
        for field_name, values in (
            ("tasks", self.tasks),
            ("seeds", self.seeds),
            ("tuning_seeds", self.tuning_seeds),
            ("learning_rates", rates),
        ):
            if len(set(values)) < len(values):
                raise UserError(
                    f"`{field_name}` must be different, for each is counted once: got {values}."
                )
        if set(self.seeds) & set(self.tuning_seeds):
            raise UserError(
                f"Seeds that choose learning rates must not be reported: got {self.tuning_seeds} "
                f"and {self.seeds}. Make them different."
            )
        if not 0 < self.tuning_share <= 1:
            raise UserError(
                f"`tuning_share` must be above 0 and at most 1: got {self.tuning_share}."
            )
        self._check_numbers()
        if not self.seeds or not self.learning_rates:
            raise UserError("A grid must have at least one seed and one learning rate.")
        if len(self.learning_rates) > 1 and not self.tuning_seeds:
            raise UserError("Several learning rates need `tuning_seeds` to be chosen on.")

    def only(self, arms: Sequence[str]) -> "Grid":
        """Return the grid with some of its arms, in the order in which they are named.

        Budgets and scores are compared with the first of them.

        Raises:
            UserError: There is no such arm.
        """
        known = {arm.name: arm for arm in self.arms}
        if not set(arms) <= known.keys():
            raise UserError(f"`arms` must be some of {', '.join(known)}: got {', '.join(arms)}.")
        return replace(self, arms=tuple(known[name] for name in arms))

    def task(self, name: str) -> AnyTask:
        """Return one of its tasks; see `counterpoint.data.tasks.named.named_task`."""
        return named_task(name, self.data)

    @property
    def size(self) -> str:
        """How large it is, in words."""
        rates = len(self.learning_rates)
        tuned = rates * len(self.tuning_seeds) if rates > 1 else 0
        cells = len(self.arms) * len(self.tasks) * (len(self.seeds) + tuned)
        counts = (
            (len(self.arms), "arm"),
            (len(self.tasks), "task"),
            (len(self.seeds), "seed"),
            (rates, "learning rate"),
        )
        product = " x ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
        return f"{product}, {cells:,} cells of {self.train.num_steps:,} steps"

    def _check_numbers(self) -> None:
        """Check numbers that would otherwise fail after the training."""
        if self.num_items < 1:
            raise UserError(f"`num_items` must be >= 1: got {self.num_items}.")
        if min((*self.seeds, *self.tuning_seeds), default=0) < 0:
            raise UserError(f"Seeds must be >= 0: got {self.seeds} and {self.tuning_seeds}.")
        if not all(rate > 0 for rate in self.learning_rates):
            raise UserError(f"`learning_rates` must be > 0: got {self.learning_rates}.")
        if self.train.optimizer.muon_lr is not None:
            raise UserError(
                "A grid must train with AdamW alone, whose rate it chooses and which has no matrix "
                f"products: got `muon_lr` {self.train.optimizer.muon_lr:g}. Leave it out."
            )


def check_costs(grid: Grid, progress: Progress) -> None:
    """Refuse arms that do not meet the budget on a task; see `costs`."""
    with progress.doing("comparing what the arms cost"):
        for task in grid.tasks:
            costs(grid, task)


def joined_factors(grid: Grid, arm: GridArm) -> tuple[tuple[str, float], ...]:
    """Return the factors of learning rates of an arm: those of the grid, and its own."""
    return tuple((dict(grid.train.optimizer.lr_factors) | dict(arm.lr_factors)).items())


def costs(grid: Grid, task: str) -> dict[str, ArmCost]:
    """Return the costs of every arm on a task.

    Raises:
        UserError: An arm does not meet the budget, and the arm, the share and the limit are named;
            or a prefix of its `lr_factors` or of the grid's starts no trained parameter's name.
    """
    found = {}
    for arm in grid.arms:
        system = sketch(arm.system)
        trained = [name for name, weight in system.named_parameters() if weight.requires_grad]
        check_prefixes(trained, joined_factors(grid, arm))
        data = learned_data(grid.task(task), 0)
        num_ticks = data.num_ticks(system.layout)
        own = sketch(on_task(arm.system, data))
        found[arm.name] = ArmCost(
            parameters=sum(w.numel() for w in system.parameters() if w.requires_grad),
            flops=mean_training_flops(system, num_ticks, grid.train.num_steps),
            task_flops=mean_training_flops(own, num_ticks, grid.train.num_steps),
            state=state_bytes(system.initial_state(1)),
        )
    first = found[grid.arms[0].name]
    for arm in grid.arms[1:]:
        for name in ("parameters", "flops", "state"):
            share = getattr(found[arm.name], name) / getattr(first, name) - 1
            limit = getattr(grid.limits, name)
            if not arm.unmatched and limit is not None and abs(share) > limit:
                raise UserError(
                    f"Arms must cost the same: {arm.name!r} has {share:+.1%} {name} beside "
                    f"{grid.arms[0].name!r} on {task!r}, and the limit is {limit:.0%}. Change its "
                    "shape, or say in `unmatched` why it need not meet the budget."
                )
    return found

"""front_loading: does reasoning data help more in pre-training than in fine-tuning?

A model is trained in two phases: pre-training on text without reasoning, with or without a share of
reasoning data, and supervised fine-tuning on reasoning data. A *chain* is a backbone and what it is
fine-tuned on; a backbone is trained once for all its chains. The corpora are settings of
independent knobs (`counterpoint.data.tasks.reasoning`), so that diversity, quality, number of
items, repetition and overlap are compared one at a time. All questions of the corpora have equally
many operations. `counterpoint.recipes.front_loading_run` runs the study.

Source: Front-Loading Reasoning (arXiv:2510.03264), whose corpora differ in all of these at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from counterpoint.blocks.transformer import TowerConfig
from counterpoint.data.tasks.items import Trained
from counterpoint.data.tasks.reasoning.corpus import Reasoning
from counterpoint.data.tasks.reasoning.joined import JoinedReasoning
from counterpoint.data.tasks.reasoning.plain import PlainText
from counterpoint.data.tasks.source import TaskData
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.systems.contract import SystemConfig
from counterpoint.systems.single_stream import SingleStreamConfig
from counterpoint.train.config import OptimizerConfig, ScheduleConfig, TrainConfig

BASE = "base"
NOTHING = "nothing"
"""Name of the fine-tuning that leaves the backbone as it is."""

ITEM_TOKENS = 70
"""Tokens of an item, and so of a row, about."""

FOLDS = (1, 2, 3, 4)
"""Folds of the questions of all corpora but one, which has `FOLDS_APART`."""

FOLDS_APART = (5, 6, 7)

Group = Literal[
    "cross",
    "catch up",
    "matched",
    "placement",
    "latent",
    "scaling",
    "objective",
    "reinforcement",
]

GROUPS: tuple[Group, ...] = get_args(Group)[:-1]
"""The groups that are run as lanes of stacks, the most important ones first."""

SAMPLED = ("base > small", "both > small")
"""Chains that also sample solutions."""


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """How a model is pre-trained.

    Attributes:
        name: Its name.
        corpus: Reasoning data in it; empty for none.
        placement: Where the reasoning data stand; one of `counterpoint.recipes.phased.PLACEMENTS`.
        trained: Tokens that carry a loss.
        without_share: Whether the tokens of the reasoning data are left out, not replaced by text.
    """

    name: str
    corpus: str = ""
    placement: str = "uniform"
    trained: Trained = "all"
    without_share: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """How a backbone is fine-tuned.

    Attributes:
        name: Its name.
        corpus: Data; empty for no fine-tuning.
        times: Number of tokens, in units of the study's `tuning_tokens`.
        before: Data of a phase of their own before it, with as many tokens as the reasoning data in
            pre-training; empty for none.
        is_reinforced: Whether the model then learns from its own solutions (GRPO).
    """

    name: str
    corpus: str = ""
    times: int = 1
    before: str = ""
    is_reinforced: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A pre-trained model and what follows its pre-training.

    Attributes:
        backbone: The pre-training.
        tuning: The phases after it.
    """

    backbone: Backbone
    tuning: Tuning

    @property
    def name(self) -> str:
        """Name of the chain in tables."""
        return f"{self.backbone.name} > {self.tuning.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A claim, and the pairs of chains that decide it.

    Attributes:
        text: The claim.
        pairs: For each pair the chain that must be better, and the other.
    """

    text: str
    pairs: tuple[tuple[str, str], ...]


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class FrontLoading:
    """The study: its size, and which groups of chains are run.

    Attributes:
        name: Name of its folder.
        system: The model.
        train: Settings of both phases, except the tokens.
        pretrain_tokens: Tokens of pre-training.
        tuning_tokens: Tokens of one fine-tuning.
        share: Share of the reasoning data in pre-training.
        num_unique: Number of items of the large corpora.
        small_share: Share of it that the small corpora have.
        tuning_lr_factor: Learning rates of fine-tuning beside those of pre-training.
        operations: Smallest and largest number of operations in the corpora.
        row_ticks: Ticks of a row, which the longest item fits.
        num_items: Number of items that are scored for each family in range; half as many are scored
            in the other splits.
        num_samples: Number of solutions of each item in range that the chains of `SAMPLED` sample,
            for pass@k.
        groups: Groups of chains that are run, the most important ones first.
        seeds: Training seeds.
    """

    name: str = "front_loading"
    system: SystemConfig
    train: TrainConfig
    pretrain_tokens: int
    tuning_tokens: int
    share: float = 0.4
    num_unique: int = 3000
    small_share: float = 0.04
    tuning_lr_factor: float = 0.5
    operations: tuple[int, int] = (3, 4)
    row_ticks: int = 192
    num_items: int = 40
    num_samples: int = 4
    groups: tuple[Group, ...] = GROUPS
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    @property
    def purpose(self) -> str:
        """What it is to show."""
        return "Do reasoning data help more in pre-training than in fine-tuning?"

    @property
    def size(self) -> str:
        """How large it is, in words."""
        return (
            f"{len(chains(self.groups))} chains x {len(self.seeds)} seeds, "
            f"{self.pretrain_tokens:,} tokens of pre-training"
        )

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.4:
            raise UserError(f"`share` must be above 0 and at most 0.4: got {self.share}.")
        if self.row_ticks < 176:
            raise UserError(f"`row_ticks` must be at least 176: got {self.row_ticks}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"`seeds` must be different, at least one: got {self.seeds}.")
        if not self.groups:
            raise UserError("`groups` must name at least one group of chains: got none.")


FAMILIES = ("arithmetic", "dyck", "rewriting", "sorting")
"""Families of the corpora. A constant answers few of their questions from three operations on."""

OTHER_FAMILIES = ("listops",)
"""Families that are in no corpus."""


def corpora(study: FrontLoading) -> dict[str, TaskData]:
    """Return the corpora by name.

    * "plain": text without reasoning.
    * "large": all families and wordings; every tenth step is wrong and every fifth one missing.
    * "small": three families in the paper's shares, two wordings, complete and right, and few
      items, so that they repeat.
    * "both": all items of both.
    * "longest": the longest one of every 10 items of "large".
    * "small many": as "small", with as many items as "large".
    * "small apart": as "small", with questions that no other corpus has.
    """
    few = max(round(study.num_unique * study.small_share), 1)
    large = Reasoning(
        families=FAMILIES,
        step_errors=0.1,
        skipped_steps=0.2,
        operations=study.operations,
        unique=study.num_unique,
        most_symbols=study.row_ticks,
        folds=FOLDS,
    )
    small = Reasoning(
        families=("arithmetic", "sorting", "dyck"),
        shares=(71.0, 21.0, 8.0),
        templates=(0, 1),
        operations=study.operations,
        unique=few,
        most_symbols=study.row_ticks,
        folds=FOLDS,
    )
    many = replace(small, unique=study.num_unique)
    tasks: dict[str, tuple[Reasoning | JoinedReasoning, int]] = {
        "large": (large, study.num_unique),
        "small": (small, few),
        "both": (JoinedReasoning(parts=(large, small)), study.num_unique + few),
        "longest": (
            replace(large, longest_of=10, unique=study.num_unique // 10),
            study.num_unique // 10,
        ),
        "small many": (many, study.num_unique),
        "small apart": (replace(small, folds=FOLDS_APART), few),
    }
    plain = TaskData(
        task=PlainText(num_symbols=study.row_ticks - 132),
        num_items=study.pretrain_tokens // ITEM_TOKENS + 1,
        num_held_out=64,
        trained="all",
    )
    return {"plain": plain} | {
        name: TaskData(task=task, num_items=count, num_held_out=0)
        for name, (task, count) in tasks.items()
    }


def splits(study: FrontLoading) -> dict[str, list[Reasoning]]:
    """Return what is scored, by name: a task for each family, from whose scored fold items come.

    "in range" has the families and operations of the corpora, "more operations" one more than the
    longest of them, "other families" those that are in no corpus.
    """
    base = Reasoning(operations=study.operations, most_symbols=2 * study.row_ticks)
    longest = study.operations[1] + 1
    more = replace(base, operations=(longest, longest))
    return {
        "in range": [replace(base, families=(name,)) for name in FAMILIES],
        "more operations": [replace(more, families=(name,)) for name in FAMILIES],
        "other families": [replace(base, families=(name,)) for name in OTHER_FAMILIES],
    }


_BACKBONES = tuple(
    Backbone(name=name or BASE, corpus=name) for name in ("", "small", "large", "both")
)
_TUNINGS = (
    Tuning(name=NOTHING),
    *(Tuning(name=name, corpus=name) for name in ("small", "large", "both", "longest")),
)


def chains(groups: Sequence[Group]) -> list[Chain]:
    """Return the chains of groups, each once, ordered by backbone."""
    base, small, large, both = _BACKBONES
    nothing, on_small, on_large = _TUNINGS[:3]
    apart = Tuning(name="small apart", corpus="small apart")
    first, last = (
        replace(both, name=f"both {place}", placement=place) for place in ("first", "last")
    )
    response = replace(both, name="both, response only", trained="spans")
    short = Backbone(name="base without the share", without_share=True)
    later = Tuning(name="both, then small", corpus="small", before="both")
    reinforced = Tuning(name="small, reinforced", corpus="small", is_reinforced=True)
    by_group: dict[Group, list[tuple[Backbone, Tuning]]] = {
        "cross": [(one, tuning) for one in _BACKBONES for tuning in _TUNINGS],
        "catch up": [
            (base, _times(name, times))
            for times in (1, 2, 4, 8, 16)
            for name in ("small", "small many")
        ]
        + [(one, on_small) for one in (small, large, both)],
        "matched": [(short, later), (both, on_small)],
        "placement": [
            (one, tuning) for one in (both, first, last) for tuning in (nothing, on_small)
        ],
        "latent": [(one, apart) for one in (base, small, large, both)],
        "scaling": [(large, _times("large", times)) for times in (1, 2, 4)],
        "objective": [(one, tuning) for one in (both, response) for tuning in (nothing, on_small)],
        "reinforcement": [(one, reinforced) for one in _BACKBONES],
    }
    wanted = {Chain(backbone=one, tuning=two) for group in groups for one, two in by_group[group]}
    order = [one.name for one in (*_BACKBONES, first, last, response, short)]
    return sorted(
        wanted,
        key=lambda chain: (order.index(chain.backbone.name), chain.tuning.times, chain.tuning.name),
    )


def _times(corpus: str, times: int) -> Tuning:
    name = corpus if times == 1 else f"{corpus} x{times}"
    return Tuning(name=name, corpus=corpus, times=times)


METRICS = {
    "answer": "Share of questions whose likeliest solution ends with the right answer.",
    "process": "Share of questions whose likeliest solution also has every step that is needed, "
    "all of them valid.",
    "bits": "Bits a symbol of the true solutions, each symbol after the true text before it.",
}
"""Metrics by name."""

COMPARED = (
    ("in range", "answer"),
    ("in range", "process"),
    ("more operations", "answer"),
)
"""What is compared for every pair of chains: what is scored, and the metric."""

CLAIMS = (
    Claim(
        text="Reasoning data in pre-training help after equal fine-tuning (front-loading gain).",
        pairs=tuple((f"{one} > small", "base > small") for one in ("small", "large", "both")),
    ),
    Claim(
        text="The gain is still there after reinforcement.",
        pairs=tuple(
            (f"{one} > small, reinforced", "base > small, reinforced")
            for one in ("small", "large", "both")
        ),
    ),
    Claim(
        text="More fine-tuning does not catch up.",
        pairs=tuple(
            ("both > small", f"base > {name} x{times}")
            for times in (2, 4, 8, 16)
            for name in ("small", "small many")
        ),
    ),
    Claim(
        text="The same reasoning tokens help more in pre-training than before fine-tuning.",
        pairs=(("both > small", "base without the share > both, then small"),),
    ),
    Claim(
        text="In pre-training, large diverse noisy data are better than small good data.",
        pairs=(("large > nothing", "small > nothing"), ("large > small", "small > small")),
    ),
    Claim(
        text="In fine-tuning, small good data are better than large diverse noisy data.",
        pairs=(("large > small", "large > large"), ("both > small", "both > large")),
    ),
    Claim(
        text="Good data in pre-training show only after fine-tuning (latent effect), also if the "
        "questions of fine-tuning are others.",
        pairs=(("both > small", "large > small"), ("both > small apart", "large > small apart")),
    ),
    Claim(
        text="More fine-tuning on large noisy data hurts.",
        pairs=(("large > large", "large > large x2"), ("large > large", "large > large x4")),
    ),
    Claim(
        text="Late reasoning data in pre-training are better than early ones.",
        pairs=(("both last > small", "both first > small"),),
    ),
    Claim(
        text="A loss on responses only, from pre-training on, is better.",
        pairs=(("both, response only > small", "both > small"),),
    ),
)
"""Claims of the paper and of the issue, declared before anything was run."""


def front_loading() -> FrontLoading:
    """Return the study at the size of some minutes of a GPU: 0.38 M parameters."""
    tower = TowerConfig(width=96, num_layers=3, num_heads=3, mlp_hidden=256, window=224)
    return FrontLoading(
        system=SingleStreamConfig(tower=tower),
        train=TrainConfig(
            num_steps=1,
            batch_rows=16,
            precision="float32",  # "auto" would measure the machine
            log_every=100,
            optimizer=OptimizerConfig(lr=3e-3),
            schedule=ScheduleConfig(warmup_steps=50),
        ),
        pretrain_tokens=5_000_000,
        tuning_tokens=100_000,
        num_unique=30_000,
    )


def front_loading_gpu() -> FrontLoading:
    """Return the study at the size of hours of a GPU: 13 M parameters, 300 M tokens."""
    tower = TowerConfig(width=384, num_layers=8, num_heads=6, mlp_hidden=1024, window=1024)
    full = front_loading()
    return replace(
        full,
        name="front_loading_gpu",
        system=SingleStreamConfig(tower=tower),
        train=replace(full.train, batch_rows=512, precision="bfloat16"),
        pretrain_tokens=300_000_000,
        tuning_tokens=15_000_000,
        share=0.2,
        num_unique=1_000_000,
        small_share=0.004,
        operations=(3, 6),
        row_ticks=512,
        num_items=250,
        num_samples=64,
        groups=get_args(Group),
    )

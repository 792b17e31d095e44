"""The settings of a training run, except the model and the data."""

from dataclasses import dataclass, field
from typing import Literal

from counterpoint.blocks.low_rank import LowRankConfig
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked


def _require(holds: bool, what: str, got: object, hint: str) -> None:
    if not holds:
        raise UserError(f"{what}, got {got}. {hint}")


def _require_at_least(least: int, value: int, name: str) -> None:
    _require(value >= least, f"`{name}` must be >= {least}", value, "Give a larger number.")


def _require_share(value: float, name: str) -> None:
    _require(0 <= value <= 1, f"`{name}` must lie in [0, 1]", value, "It is a share.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Settings of AdamW, and of Muon for hidden matrices. Vectors and embeddings have no decay.

    Attributes:
        lr: Highest learning rate of AdamW.
        muon_lr: Highest learning rate of Muon (https://kellerjordan.github.io/posts/muon), which
            trains the weights of all linear layers except the head; ``None`` leaves them to AdamW.
        muon_momentum: Momentum of Muon.
        betas: Decay rates of AdamW's two moments.
        eps: Number added to the square root of the second moment.
        weight_decay: Decoupled decay of matrices.
        lr_factors: Pairs (prefix of parameter names, factor of `lr` and `muon_lr`); the longest
            matching prefix applies.
        kind_lr_factors: Pairs (kind of batch, factor of all learning rates in its steps); see
            `counterpoint.train.optimizer.KindOptimizers`.
    """

    lr: float = 3e-3
    muon_lr: float | None = None
    muon_momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    lr_factors: tuple[tuple[str, float], ...] = ()
    kind_lr_factors: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        _require(self.lr > 0, "`lr` must be > 0", self.lr, "1e-3 is a usual start.")
        _require(
            self.muon_lr is None or self.muon_lr > 0,
            "`muon_lr` must be > 0 or None",
            self.muon_lr,
            "0.02 is a usual start.",
        )
        _require(
            all(0 <= beta < 1 for beta in (self.muon_momentum, *self.betas)),
            "`betas` and `muon_momentum` must lie in [0, 1)",
            (*self.betas, self.muon_momentum),
            "(0.9, 0.95) and 0.95 are usual.",
        )
        _require(
            self.weight_decay >= 0, "`weight_decay` must be >= 0", self.weight_decay, "0 is off."
        )
        for name, factor in self.lr_factors + self.kind_lr_factors:
            _require(factor >= 0, f"The factor of {name!r} must be >= 0", factor, "0 freezes.")

    def kind_lr_factor(self, kind: str) -> float:
        """Return the factor of the learning rates in the steps of a kind of batch."""
        return dict(self.kind_lr_factors).get(kind, 1.0)


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """The learning rate over the run: linear warm-up, then a cosine or a constant and a decay.

    Attributes:
        kind: ``"cosine"`` decreases over all steps after the warm-up. ``"wsd"`` (warm-up, stable,
            decay) stays constant, then decreases linearly over the last `decay_fraction` of the
            run.
        warmup_steps: Number of steps until the highest rate.
        decay_fraction: Share of all steps in which ``"wsd"`` decreases.
        final_ratio: Rate at the end, as a share of the highest.
    """

    kind: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int = 20
    decay_fraction: float = 0.2
    final_ratio: float = 0.1

    def __post_init__(self) -> None:
        _require(
            self.kind in ("cosine", "wsd"),
            "`kind` must be 'cosine' or 'wsd'",
            repr(self.kind),
            "Choose one.",
        )
        _require(
            self.warmup_steps >= 0, "`warmup_steps` must be >= 0", self.warmup_steps, "0 is off."
        )
        _require_share(self.decay_fraction, "decay_fraction")
        _require_share(self.final_ratio, "final_ratio")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseConfig:
    """A part of a run with settings of its own; see `counterpoint.train.phases`.

    Attributes:
        name: Name of the phase.
        num_steps: Number of its steps; 0 until the data of the run are read, which decide it.
        schedule: The learning rate over this phase and those after it that continue it, which warms
            up anew. ``None`` continues the schedule of the phase before.
        lr_factor: Factor of all learning rates.
        reset_optimizer: Whether the phase begins without moments.
    """

    name: str
    num_steps: int = 0
    schedule: ScheduleConfig | None = None
    lr_factor: float = 1.0
    reset_optimizer: bool = False

    def __post_init__(self) -> None:
        _require_at_least(0, self.num_steps, "num_steps")
        _require(self.lr_factor > 0, "`lr_factor` must be > 0", self.lr_factor, "1 is neutral.")


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuneConfig:
    """The weights with which a run begins instead of random ones.

    Attributes:
        init_from: A checkpoint or run folder of ours, or a published model: for a Moshi a folder of
            Kyutai's or NVIDIA's, or a file of weights in such a folder; for a text model a Llama's
            folder or GGUF file. A system with a backbone (`System.backbones`) may begin with that
            alone, and Multi-Token Attention where the other model has plain attention. Empty means
            random weights.
        low_rank: Adapters that are trained, beside weights that begin anew, while all others are
            frozen; ``None`` trains all weights.
    """

    init_from: str = ""
    low_rank: LowRankConfig | None = None

    def __post_init__(self) -> None:
        _require(
            bool(self.init_from) or self.low_rank is None,
            "`init_from` must name the weights below adapters",
            repr(self.init_from),
            "Name them, or leave `low_rank` out.",
        )


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Settings of one training run.

    Attributes:
        num_steps: Number of optimiser steps.
        batch_rows: Number of rows of a step, over all processes.
        accumulation: Number of equal parts of the batch, computed one after another. Several
            processes share the parts, so that a recipe gives the same run on 1 to `accumulation`
            processes.
        seed: Seed of all randomness inside the model: noise is a function of (seed, step, part).
        clip_norm: Largest norm of the gradient; ``None`` does not clip it.
        precision: Type of the matrix products, including Muon's. ``"bfloat16"`` computes under
            autocast; weights and moments stay in float32. ``"auto"`` uses the faster type, measured
            when the run begins (`counterpoint.train.precision`).
        compile: Whether to compile the loss with `torch.compile`.
        evaluate_every: Number of steps between evaluations; 0 evaluates at the end only.
        checkpoint_every: Number of steps between checkpoints; 0 saves at the end only.
        keep_checkpoints: Number of newest checkpoints that are kept.
        log_every: Number of steps between lines of ``metrics.jsonl``.
        optimizer: Settings of AdamW and Muon.
        schedule: The learning rate over the run.
        fine_tune: The weights with which the run begins; ``None`` means random weights.
        phases: Parts of the run, one after another, which have all its steps; the run is evaluated
            and saved after each. Without any, the run is one phase with `schedule`.
    """

    num_steps: int
    batch_rows: int
    accumulation: int = 1
    seed: int = 0
    clip_norm: float | None = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    evaluate_every: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    fine_tune: FineTuneConfig | None = None
    phases: tuple[PhaseConfig, ...] = ()

    def __post_init__(self) -> None:
        _require_at_least(1, self.num_steps, "num_steps")
        _require_at_least(1, self.batch_rows, "batch_rows")
        _require_at_least(1, self.accumulation, "accumulation")
        _require_at_least(1, self.keep_checkpoints, "keep_checkpoints")
        _require_at_least(1, self.log_every, "log_every")
        _require_at_least(0, self.evaluate_every, "evaluate_every")
        _require_at_least(0, self.checkpoint_every, "checkpoint_every")
        _require_at_least(0, self.seed, "seed")
        steps = [phase.num_steps for phase in self.phases]
        _require(
            0 in steps or not steps or sum(steps) == self.num_steps,
            "`num_steps` must be the sum of the steps of all phases",
            f"{self.num_steps} and {steps}",
            "Make the run with `counterpoint.recipes.phased.phased_run`.",
        )
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            "`clip_norm` must be > 0 or None",
            self.clip_norm,
            "None switches clipping off.",
        )
        _require(
            self.precision in ("auto", "float32", "bfloat16"),
            "`precision` must be 'auto', 'float32' or 'bfloat16'",
            repr(self.precision),
            "Choose one.",
        )
        _require(
            self.batch_rows % self.accumulation == 0,
            "`batch_rows` must be a multiple of `accumulation`",
            f"{self.batch_rows} rows in {self.accumulation} parts",
            "Change one of them.",
        )

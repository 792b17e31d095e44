"""HdLM, "Making Language Model a Hierarchical Classifier" (arXiv:2507.12930): an inner coarse head.

One causal tower writes two streams. Coarse content (the ids of a label, a plan or a summary) comes
in turns of up to ``coarse_depth`` ids and is written by a head after layer k. Fine content (bytes,
the stream ``part``) is written by the head after the last layer. All of it is one sequence:

    part ... part | coarse 1 ... coarse K, handover | part ... part | coarse 1 ...

The handover is a step without content, which stands where the published template has the header of
its answer: its state after the last layer writes the first fine element after a turn. The exit mode
says what the layers above k do at coarse steps:

    none       they run, step by step, as in the published code, where nothing is saved
    lazy       they run later, for a whole turn at once, when its first fine element needs them
    masked     they do not run, and nothing above k reads a coarse step
    propagate  they do not run; the state at k gives them keys and values, and no other product

Source: the paper's depth-2 model and its code (github.com/coswindywang/HdLM): heads after layer k
and after the last layer, each with the loss of its own stream. Deviations: coarse content is a
stream of ids instead of text between headers; no prompt that the label chooses follows it; the
coarse head reads a normalised state (the published code does not normalise: ``coarse_norm=False``)
and a learned vector that says which element is due; heads start at zero instead of as copies; the
short convolution of every system; the modes lazy, masked and propagate; feedback as an embedding.
Checked against: `SingleStream` without a coarse stream, a plain tower with two heads, and all modes
against each other at k = the number of layers (`tests/systems/test_hdlm.py`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.convolution import CausalConvolution, check_taps
from counterpoint.blocks.depth import CodebookEmbedding
from counterpoint.blocks.early_exit import (
    ExitOrders,
    ExitStates,
    TowerPast,
    exit_flops,
    lower_layers,
    upper_layers,
)
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.transformer import Tower, TowerConfig
from counterpoint.errors import UserError
from counterpoint.literals import literals_checked
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream, Ticks
from counterpoint.streams.turns import HANDOVER, Elements, Turns
from counterpoint.systems.contract import (
    Choose,
    Logits,
    State,
    System,
    SystemConfig,
    in_chunks,
)
from counterpoint.tracing import is_traced

COARSE = "coarse"
PART = "part"
SEQUENCE = (COARSE, HANDOVER, PART)
"""Elements that may stand in the tower's sequence, in the order within a tick."""
PADDING_ID = 0
"""Coarse id of an element that says nothing and takes no place in the sequence."""

ExitMode = Literal["none", "lazy", "masked", "propagate"]
Feedback = Literal["token", "embedding"]


@literals_checked
@dataclass(frozen=True, kw_only=True, slots=True)
class HdLMConfig(SystemConfig):
    """Shape of an `HdLM`.

    Attributes:
        tower: The transformer; its window counts places of the sequence.
        coarse_layer: Number of layers below the coarse head (k); the number of all layers is the
            control in which both heads read the last layer.
        coarse_depth: Largest number of coarse ids in a turn; 0 leaves the coarse stream out.
        coarse_vocab_size: Number of ids of the coarse stream; id 0 is padding.
        turn_ticks: Number of ticks of a block; there may be a turn after every block. Training rows
            may have turns at other ticks, at most one for every ``turn_ticks`` ticks and one more.
        exit_mode: What the layers above k do at coarse steps.
        feedback: How coarse ids are read: each as a step of its own (``token``), or added to the
            handover, at its input and again after layer k (``embedding``).
        coarse_norm: Whether the state at k is normalised before the coarse head.
        coarse_weight: Weight of the coarse loss, which is a mean over all places of the stream. If
            it is ``coarse_depth``, the loss is the likelihood of both streams.
        vocab_size: Number of ids of the part stream.
        conv_taps: Number of taps of the convolution after the embedding; 0 for no convolution.
    """

    tower: TowerConfig
    coarse_layer: int
    coarse_depth: int = 1
    coarse_vocab_size: int = 128
    turn_ticks: int = 16
    exit_mode: ExitMode = "none"
    feedback: Feedback = "token"
    coarse_norm: bool = True
    coarse_weight: float = 1.0
    vocab_size: int = 258
    conv_taps: int = 4

    def __post_init__(self) -> None:
        check_taps(self.conv_taps)
        if not 1 <= self.coarse_layer <= self.tower.num_layers:
            raise UserError(
                f"`coarse_layer` must be 1 to {self.tower.num_layers}, the layers of the tower: "
                f"got {self.coarse_layer}."
            )
        if self.coarse_depth < 0 or self.turn_ticks < 1:
            raise UserError(
                "`coarse_depth` must be >= 0 and `turn_ticks` >= 1: got "
                f"{self.coarse_depth} and {self.turn_ticks}."
            )
        if self.coarse_vocab_size < 2 or self.vocab_size < 1:
            raise UserError(
                "`coarse_vocab_size` must be >= 2 (padding and one other id), and `vocab_size` "
                f">= 1: got {self.coarse_vocab_size} and {self.vocab_size}."
            )
        if self.feedback == "embedding" and self.exit_mode != "none":
            raise UserError(
                "With feedback as an embedding there are no coarse steps to exit from: `exit_mode` "
                f"must be 'none', got {self.exit_mode!r}."
            )
        if self.exit_mode == "propagate" and not isinstance(self.tower.mixer, AttentionConfig):
            raise UserError(
                "Only attention has keys and values to propagate to: the tower's `mixer` must be "
                f"attention, got {type(self.tower.mixer).__name__}."
            )
        if self.tower.chunk_steps < self.turn_places + 1:
            raise UserError(
                f"The tower's window must hold a tick with a turn, {self.turn_places + 1} places: "
                f"got {self.tower.window}."
            )

    @property
    def turn_places(self) -> int:
        """Number of places of a full turn in the sequence, the handover included."""
        if not self.coarse_depth:
            return 0
        return 1 + (self.coarse_depth if self.feedback == "token" else 0)

    @property
    def exits(self) -> bool:
        """Whether the layers above k leave coarse steps out."""
        return self.exit_mode in ("masked", "propagate")


def tiny() -> HdLMConfig:
    """Return a model of 1.4M parameters, which trains on a laptop in two minutes."""
    return HdLMConfig(
        tower=TowerConfig(width=144, num_layers=5, num_heads=3, mlp_hidden=400, window=32),
        coarse_layer=3,
        coarse_depth=4,
        coarse_weight=4.0,
        exit_mode="masked",
    )


def small() -> HdLMConfig:
    """Return a model of about 27M parameters."""
    return HdLMConfig(
        tower=TowerConfig(width=512, num_layers=8, num_heads=8, mlp_hidden=1376, window=1024),
        coarse_layer=4,
        coarse_depth=8,
        coarse_vocab_size=256,
        turn_ticks=64,
        coarse_weight=8.0,
        exit_mode="masked",
    )


class HdLMState(NamedTuple):
    """State of a session.

    Attributes:
        past: State of the tower.
        newest: The newest states after layer k and after the last layer, joined.
        conv: Last steps of the convolution.
    """

    past: TowerPast
    newest: Float[Tensor, "B D2"]
    conv: Float[Tensor, "B C D"]


class Coarse(nn.Module):
    """The modules for coarse content: embeddings, the handover, and the head after layer k."""

    def __init__(self, config: HdLMConfig) -> None:
        """Make random embeddings; the head starts at zero."""
        super().__init__()
        depth = config.coarse_depth
        size = config.coarse_vocab_size
        width = config.tower.width
        self.embedding = CodebookEmbedding(depth, size, width)
        self.handover = nn.Parameter(torch.randn(width))
        decided = CodebookEmbedding(depth, size, width) if config.feedback == "embedding" else None
        self.decided = decided
        self.due = nn.Parameter(torch.zeros(depth, width))
        self.norm = RMSNorm(width, config.tower.norm_epsilon) if config.coarse_norm else None
        self.head = nn.Linear(width, size, bias=False)
        nn.init.zeros_(self.head.weight)

    def scores(self, states: Float[Tensor, "*B k D"], first: int = 0) -> Float[Tensor, "*B k V"]:
        """Return the scores of elements ``first, first + 1, ...`` of a turn, from states before."""
        x = states + self.due[first : first + states.shape[-2]]
        return self.head(x if self.norm is None else self.norm(x))


class HdLM(System):
    """A causal language model with a coarse stream that is written from an inner layer.

    Rows without the coarse stream are read as text without turns, and train only the part.
    """

    Config = HdLMConfig
    config: HdLMConfig
    tick_stages: ClassVar[tuple[str, ...]] = ("read",)
    writes_with_tower = True

    def __init__(self, config: HdLMConfig) -> None:
        """Make random weights; the heads start at zero, so the first prediction is uniform."""
        super().__init__()
        self.config = config
        self.layout = _layout(config)
        self.turns = Turns(
            speaker=COARSE, steady=PART, padding_id=PADDING_ID, turn_ticks=config.turn_ticks
        )
        width = config.tower.width
        self.embedding = CodebookEmbedding(1, config.vocab_size, width)
        self.conv = CausalConvolution(width, config.conv_taps)
        self.tower = Tower(config.tower)
        self.coarse = Coarse(config) if config.coarse_depth else None
        self.norm = RMSNorm(width, config.tower.norm_epsilon)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)

    def loss_factor(self, group: str) -> float:
        """Return the weight of a group of losses; see `System.loss_factor`."""
        return self.config.coarse_weight if group == COARSE else 1.0

    # Offline

    def forward(self, batch: Batch) -> Logits:
        """Score the next element at every tick; see `System.forward`.

        Raises:
            UserError: The batch has the coarse stream only among its ticks or only among its
                targets.
        """
        elements = self.turns.elements(batch.ticks)
        written = self.turns.elements(batch.elements or batch.targets)
        if written.keys() != elements.keys():
            raise UserError(
                "A batch must have the coarse stream both read and written, or neither: got "
                f"{', '.join(batch.ticks)} read and {', '.join(batch.targets)} written."
            )
        behind = {name: ids for name, ids in written.items() if name != PART}
        run, _ = self._run(elements, behind=behind, document_start=batch.document_start)
        fine = {name: ids for name, ids in written.items() if name in run.orders.above.depths}
        upper = run.orders.above.states_before(run.upper, fine)[PART]
        scores: dict[str, Tensor] = {}
        if self.coarse is not None and behind:
            scores[COARSE] = self.coarse.scores(self._before_coarse(run, behind))
        return {**scores, PART: self.head(self.norm(upper[:, :, 0]))}

    def _before_coarse(self, run: ExitStates, written: Elements) -> Float[Tensor, "B T k D"]:
        """Return the input of the coarse head for each element of a turn, given those before."""
        order = run.orders.below
        if self.coarse is None or self.coarse.decided is None:
            return order.states_before(run.lower, {COARSE: written[COARSE]})[COARSE]
        before = order.states_before(run.lower, {HANDOVER: written[HANDOVER]})[HANDOVER]
        decided = self.coarse.decided(written[COARSE][:, :, :-1])
        earlier = torch.cat((torch.zeros_like(before), decided), 2)
        return before + earlier.cumsum(2)

    def _embed(self, elements: Elements, first: int) -> dict[str, Float[Tensor, "B T _k D"]]:
        """Return the input of the tower, by stream; ``first`` numbers the coarse elements."""
        embedded = {}
        if self.coarse is not None and COARSE in elements:
            coarse = self.coarse.embedding(elements[COARSE], first)
            if self.coarse.decided is None:
                embedded[COARSE] = coarse
            if HANDOVER in elements:
                handover = self.coarse.handover.expand(*coarse.shape[:2], 1, -1)
                added = None if self.coarse.decided is None else coarse.sum(2, keepdim=True)
                embedded[HANDOVER] = handover if added is None else handover + added
        if PART in elements:
            embedded[PART] = self.embedding(elements[PART])
        return embedded

    def _run(
        self,
        elements: Elements,
        state: HdLMState | None = None,
        *,
        behind: Elements | None = None,
        document_start: Int[Tensor, "B T"] | None = None,
        lengths: Int[Tensor, " B"] | None = None,
        first: int = 0,
        ends: bool = True,
    ) -> tuple[ExitStates, Float[Tensor, "B C D"]]:
        """Run the tower over whole rows, or over the next ticks of sessions.

        Args:
            elements: The elements to read.
            state: State of sessions; ``None`` for whole rows.
            behind: The elements written after each tick, at ticks where documents end.
            document_start: First tick of each tick's document, for whole rows.
            lengths: Number of real ticks of each row, for sessions.
            first: Number of the first coarse element in ``elements``.
            ends: Whether the layers above k are needed.

        Returns:
            States after layer k and after the last layer, and the new state of the convolution.
        """
        behind = behind or {}
        past = None if state is None else state.past
        rows = {"behind": behind, "document_start": document_start, "lengths": lengths}
        orders = self._orders(elements, past, rows)
        below = orders.below
        x = below.merge(self._embed(elements, first), self._embed(behind, first))
        if state is None:
            x, conv = self.conv(x, age=below.position - below.document_start)
        else:
            x, conv = self.conv(x, state.conv, lengths=below.lengths)
        k = self.config.coarse_layer
        lower = lower_layers(self.tower, k, x, orders, past)
        if not ends:
            return ExitStates(orders, lower, lower), conv
        y = self._with_decided(lower, elements, behind, orders)
        return ExitStates(orders, lower, upper_layers(self.tower, k, y, orders, past)), conv

    def _orders(
        self, elements: Elements, past: TowerPast | None, rows: Mapping[str, Any]
    ) -> ExitOrders:
        """Return the elements with steps below and above layer k; ``rows``: see `Turns.order`."""
        num_below = None if past is None else past.below
        num_above = None if past is None else past.above
        stepped = (HANDOVER, PART) if self.config.feedback == "embedding" else SEQUENCE
        below = self.turns.order(stepped, elements, num_read=num_below, **rows)
        if not self.config.exits or HANDOVER not in elements:
            return ExitOrders(below, below)
        above = self.turns.order((HANDOVER, PART), elements, num_read=num_above, **rows)
        left = None
        if self.config.exit_mode == "propagate":
            left = self.turns.order((COARSE,), elements, num_read=num_above, **rows)
        return ExitOrders(below, above, left)

    def _with_decided(
        self,
        lower: Float[Tensor, "B N D"],
        elements: Elements,
        behind: Elements,
        orders: ExitOrders,
    ) -> Float[Tensor, "B N D"]:
        """Return the input of layer k + 1: with embedding feedback, handovers receive the turn."""
        if self.coarse is None or self.coarse.decided is None or COARSE not in elements:
            return lower
        added = {HANDOVER: self.coarse.decided(elements[COARSE]).sum(2, keepdim=True)}
        if PART in elements:
            added[PART] = torch.zeros_like(added[HANDOVER])
        after = {}
        if COARSE in behind:
            after = {HANDOVER: self.coarse.decided(behind[COARSE]).sum(2, keepdim=True)}
        return lower + orders.below.merge(added, after)

    # Streaming

    @property
    def window_ticks(self) -> int:
        """The context, in ticks without turns; see `System.window_ticks`."""
        return self.config.tower.window

    def initial_state(self, batch_size: int) -> HdLMState:
        """Return the state before the first tick; see `System.initial_state`."""
        width = self.config.tower.width
        newest = self.head.weight.new_zeros(batch_size, 2 * width)
        none = torch.zeros(batch_size, dtype=torch.long, device=newest.device)
        return HdLMState(
            past=TowerPast(none, none.clone(), self.tower.initial_state(batch_size)),
            newest=newest,
            conv=self.conv.initial_state(batch_size),
        )

    def read(
        self, ticks: Ticks, state: HdLMState, lengths: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], HdLMState]:
        """Read the next ticks; see `System.read`."""
        most_ticks = self.turns.most_ticks(self.tower.chunk_steps, self.config.turn_places)
        return in_chunks(self._read_chunk, most_ticks, ticks, state, lengths)

    def _read_chunk(
        self, ticks: Ticks, state: HdLMState, lengths: Tensor | None
    ) -> tuple[Float[Tensor, "B T D2"], HdLMState]:
        run, conv = self._run(self.turns.elements(ticks), state, lengths=lengths)
        hidden = run.at_ticks(state.newest)
        newest = hidden[:, -1] if hidden.shape[1] else state.newest
        return hidden, HdLMState(state.past.after(run.orders), newest, conv)

    def write(
        self, hidden: Float[Tensor, "B D"], choose: Choose, state: State | None = None
    ) -> dict[str, Int[Tensor, "B ..."]]:
        """Write the next tick; see `System.write`.

        The caches after the steps that were read are scratch space: `read` writes the same again.
        """
        frame: dict[str, Tensor] = {}
        if self.coarse is not None:
            frame[COARSE], hidden = self._write_turn(hidden, choose, state)
        upper = hidden.chunk(2, -1)[1]
        frame[PART] = choose(PART, 0, self.head(self.norm(upper)))
        return frame

    def _write_turn(
        self, hidden: Float[Tensor, "B D2"], choose: Choose, state: State
    ) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B D2"]]:
        """Write the coarse elements of a tick; return them and the states after the turn.

        The layers below k write the elements; then the turn goes through the tower at once.
        """
        coarse = cast(Coarse, self.coarse)
        depth = self.config.coarse_depth
        lower = hidden.chunk(2, -1)[0]
        chosen: list[Tensor] = []
        ahead = state
        for number in range(depth):
            scores = coarse.scores(lower[:, None], number)[:, 0]
            chosen.append(choose(COARSE, number, scores))
            said = chosen[-1].masked_fill(chosen[-1] == PADDING_ID, UNSET_ID)[:, None, None]
            if number == depth - 1 or _are_nothing(said):
                continue
            if coarse.decided is not None:
                lower = lower + coarse.decided(said, number)[:, 0, 0]
                continue
            # As published, all layers run at every step; the other modes need only those below k.
            ends = self.config.exit_mode == "none"
            run, conv = self._run({COARSE: said}, ahead, first=number, ends=ends)
            lower = run.orders.below.states_at_ticks(run.lower, lower)[:, 0]
            ahead = ahead._replace(past=ahead.past.after(run.orders), conv=conv)
        ids = torch.stack(chosen, -1)
        elements = self.turns.elements({COARSE: ids[:, None]})
        if _are_nothing(elements[HANDOVER]):
            return ids, hidden
        run, _ = self._run(elements, state)
        return ids, run.at_ticks(hidden)[:, 0]

    # Costs

    def flops_per_tick(
        self, num_ticks: int, *, training: bool = False, predicted: Collection[str] | None = None
    ) -> float:
        """Return the forward (or training) FLOPs a tick; see `System.flops_per_tick`."""
        config = self.config
        turns = self.turns.num_turns(num_ticks)
        heads = 2 * self.head.weight.numel()
        if self.coarse is None or (predicted is not None and COARSE not in predicted):
            turns = 0
        else:
            heads += 2 * self.coarse.head.weight.numel() * config.coarse_depth
        num_below = num_ticks + config.turn_places * turns
        num_above = num_ticks + turns if config.exits else num_below
        num_left = config.coarse_depth * turns if config.exit_mode == "propagate" else 0
        tower = exit_flops(self.tower, config.coarse_layer, num_below, num_above, num_left)
        return (tower / num_ticks + heads) * (3 if training else 1)


def _are_nothing(ids: Int[Tensor, "*B"]) -> bool:
    """Return whether no row has an element; this reads from the device, but may save a pass."""
    return not is_traced() and not bool((ids != UNSET_ID).any())


def _layout(config: HdLMConfig) -> Layout:
    """Return the coarse stream, whose steps come when their block is finished, and the part."""
    part = Stream(name=PART, role=Role.PART, vocab_size=config.vocab_size, predicted=True)
    if not config.coarse_depth:
        return Layout(streams=(part,))
    coarse = Stream(
        name=COARSE,
        role=Role.WHOLE,
        vocab_size=config.coarse_vocab_size,
        depth=config.coarse_depth,
        has_codebooks=True,
        period_ticks=config.turn_ticks,
        delay_ticks=1,
        predicted=True,
        padding_id=PADDING_ID,
    )
    return Layout(streams=(coarse, part))

"""Depth decoding: the elements of one frame are scored one after another from one vector.

Step k of a frame reads that vector, the element before it (for step 0, an element of another
vocabulary) and, through attention, the earlier steps; it scores element k. Every step may have its
own weights.

Source: the depth transformer of Moshi (arXiv:2410.00037), section 3.4.1; RQ-Transformer
(arXiv:2203.01941), section 3.2.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.blocks.attention import attend, score_bias
from counterpoint.blocks.norm import RMSNorm
from counterpoint.blocks.recompute import computed_again
from counterpoint.errors import UserError
from counterpoint.streams.clock import SEQUENCE, span, span_mask
from counterpoint.streams.spec import UNSET_ID

Past = Float[Tensor, "N 2 H _P E"]
"""Keys and values of the steps of a frame that have been computed."""


@runtime_checkable
class _Costed(Protocol):
    """A `StepLinear`, including one stored in 8 bits."""

    def flops(self) -> int: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig:
    """Shape of a `DepthDecoder`.

    Attributes:
        width: Number of features of a step.
        num_layers: Number of layers.
        num_heads: Number of attention heads; must divide ``width``.
        mlp_hidden: Number of hidden features of the gated MLP.
        schedule: Weight set that each step uses, so that steps may share the weights of layers. If
            it is empty, every step has its own. Embeddings and heads are never shared.
        embedding_rank: Number of features of an embedding before a matrix maps it to ``width``;
            ``None`` embeds directly.
        norm_epsilon: Number added to the mean square in normalisation.
        checkpoint_activations: See `counterpoint.blocks.transformer.TowerConfig`.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_hidden: int
    schedule: tuple[int, ...] = ()
    embedding_rank: int | None = None
    norm_epsilon: float = 1e-6
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "mlp_hidden"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"A depth decoder's `{name}` must be >= 1: got {getattr(self, name)}."
                )
        if self.width % self.num_heads:
            raise UserError(
                f"`num_heads` must divide `width`: got {self.num_heads} and {self.width}."
            )
        if self.embedding_rank is not None and self.embedding_rank < 1:
            raise UserError(f"`embedding_rank` must be >= 1: got {self.embedding_rank}.")
        # Then a decoder with fewer steps uses the first weight sets, and no others.
        if list(dict.fromkeys(self.schedule)) != list(range(len(set(self.schedule)))):
            raise UserError(
                "`schedule` must number the weight sets 0, 1, ... in the order of their first use: "
                f"got {self.schedule}."
            )


class StepLinear(nn.Module):
    """A linear map without bias whose weights depend on the step.

    The rows of all weight sets are stacked in one matrix.

    Args:
        in_features: Number of features of the input.
        out_features: Number of features of the output of a step.
        schedule: Weight set of every step.
    """

    def __init__(self, in_features: int, out_features: int, schedule: tuple[int, ...]) -> None:
        """Draw the weights from ``N(0, 1 / in_features)``."""
        super().__init__()
        self.out_features = out_features
        self.schedule = schedule
        self.num_sets = max(schedule, default=-1) + 1
        weight = torch.randn(self.num_sets * out_features, in_features) * in_features**-0.5
        self.weight = nn.Parameter(weight)

    def forward(
        self, x: Float[Tensor, "N *k _D"], first: int = 0, num_steps: int | None = None
    ) -> Float[Tensor, "N k _F"]:
        """Map the steps ``first, first + 1, ...``, each with its own weights.

        Args:
            x: A vector for each step, (N, k, D); or, with ``num_steps``, one for all steps, (N, D).
            first: Number of the first step.
            num_steps: The number of steps k, needed only if ``x`` is (N, D).
        """
        if (x.shape[1] if num_steps is None else num_steps) == 1:  # faster by a third in a session
            start = self.schedule[first] * self.out_features
            y = F.linear(x, self.weight.narrow(0, start, self.out_features))
            return y if num_steps is None else y[:, None]
        if num_steps is None:
            return torch.einsum("nkd,kfd->nkf", x, self._weights(first, x.shape[1]))
        weights = self._weights(first, num_steps)
        return F.linear(x, weights.flatten(0, 1)).unflatten(-1, (num_steps, self.out_features))

    def _weights(self, first: int, num_steps: int) -> Float[Tensor, "k _F _D"]:
        weights = self.weight.unflatten(0, (self.num_sets, self.out_features))
        sets = self.schedule[first : first + num_steps]
        if sets == tuple(range(sets[0], sets[0] + num_steps)):
            return weights[sets[0] : sets[0] + num_steps]
        return torch.stack([weights[i] for i in sets])

    def flops(self) -> int:
        """Return the FLOPs of all steps of a frame."""
        return 2 * len(self.schedule) * self.out_features * self.weight.shape[1]


class CodebookEmbedding(nn.Module):
    """Embeddings of the elements of several codebooks, each with its own table.

    Args:
        num_codebooks: Number of codebooks.
        num_ids: Number of ids of one codebook.
        width: Number of features of an embedding.
        rank: Number of features of the tables; a matrix for each codebook maps them to ``width``.
            ``None`` means ``width`` without a matrix.
    """

    def __init__(
        self, num_codebooks: int, num_ids: int, width: int, rank: int | None = None
    ) -> None:
        """Draw the tables from ``N(0, 1)``."""
        super().__init__()
        self.num_ids = num_ids
        self.table = nn.Embedding(num_codebooks * num_ids, rank or width)
        self.raise_rank = (
            None if rank is None else StepLinear(rank, width, tuple(range(num_codebooks)))
        )

    def forward(self, ids: Int[Tensor, "*B k"], first: int = 0) -> Float[Tensor, "*B k D"]:
        """Embed ids of the codebooks ``first, first + 1, ...``; `UNSET_ID` becomes zeros."""
        codebook = torch.arange(first, first + ids.shape[-1], device=ids.device)
        x = self.table(ids.clamp(min=0) + codebook * self.num_ids)
        x = x * (ids != UNSET_ID)[..., None]
        if self.raise_rank is not None:
            x = self.raise_rank(x.flatten(0, -3), first).view(*x.shape[:-1], -1)
        return x


class DepthLayer(nn.Module):
    """Pre-norm transformer layer over the steps of a frame; all steps share its norms."""

    def __init__(self, config: DepthConfig, schedule: tuple[int, ...]) -> None:
        """Make one layer of the decoder's shape."""
        super().__init__()
        width = config.width
        hidden = config.mlp_hidden
        self.num_heads = config.num_heads
        self.attention_norm = RMSNorm(width, config.norm_epsilon)
        self.qkv = StepLinear(width, 3 * width, schedule)
        self.out = StepLinear(width, width, schedule)
        self.mlp_norm = RMSNorm(width, config.norm_epsilon)
        self.gate_up = StepLinear(width, 2 * hidden, schedule)
        self.down = StepLinear(hidden, width, schedule)
        with torch.no_grad():
            for ends_branch in (self.out, self.down):
                ends_branch.weight.mul_((2 * config.num_layers) ** -0.5)

    def forward(
        self,
        x: Float[Tensor, "N k D"],
        bias: Float[Tensor, "N 1 k P"] | None,
        first: int,
        past: Past | None,
    ) -> tuple[Float[Tensor, "N k D"], Past]:
        """Apply the layer to the steps ``first, first + 1, ...``.

        Args:
            x: States of the steps.
            bias: Bias that hides later steps; ``None`` if x is a single step, which reads all steps
                before it.
            first: Number of the first step of x, which is also the number of steps in ``past``.
            past: Keys and values of the earlier steps.

        Returns:
            The new states, and the keys and values of all steps so far.
        """
        qkv = self.qkv(self.attention_norm(x), first)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        key_value = torch.stack((k, v), 1)
        if past is not None:
            key_value = torch.cat((past, key_value), 3)
        k, v = key_value.unbind(1)
        # Without a mask `attend` would be causal and treat the query as the first step.
        y = F.scaled_dot_product_attention(q, k, v) if bias is None else attend(q, k, v, bias)
        x = x + self.out(y.transpose(1, 2).flatten(2), first)
        gate, up = self.gate_up(self.mlp_norm(x), first).chunk(2, -1)
        return x + self.down(F.silu(gate) * up, first), key_value


class DepthDecoder(nn.Module):
    """Scores the elements of frames, all steps at once or one after another.

    Args:
        config: Shape of the layers.
        context_width: Number of features of the vector of a frame.
        num_steps: Number of elements of a frame that are scored.
        num_first_ids: Number of ids of the element that step 0 reads.
        vocab_size: Number of ids of an element that is scored. One more id, the last, may be read.
    """

    def __init__(
        self,
        config: DepthConfig,
        *,
        context_width: int,
        num_steps: int,
        num_first_ids: int,
        vocab_size: int,
    ) -> None:
        """Make random weights; the heads start at zero.

        Raises:
            UserError: ``config.schedule`` has another number of steps.
        """
        super().__init__()
        if config.schedule and len(config.schedule) != num_steps:
            raise UserError(
                f"`schedule` must give a weight set for each of the {num_steps} steps: got "
                f"{len(config.schedule)}."
            )
        self.config = config
        self.num_steps = num_steps
        width = config.width
        rank = config.embedding_rank
        own = tuple(range(num_steps))
        schedule = config.schedule or own
        self.project = StepLinear(context_width, width, schedule)
        self.first_embedding = CodebookEmbedding(1, num_first_ids, width, rank)
        # The element that the last step scores is never read, so it needs no embedding.
        self.embedding = CodebookEmbedding(num_steps - 1, vocab_size + 1, width, rank)
        layers = [DepthLayer(config, schedule) for _ in range(config.num_layers)]
        self.layers = cast("Sequence[DepthLayer]", nn.ModuleList(layers))
        self.head = StepLinear(width, vocab_size, own)
        nn.init.zeros_(self.head.weight)

    def forward(
        self,
        context: Float[Tensor, "N _C"],
        previous: Int[Tensor, "N k"],
        past: tuple[Past, ...] | None = None,
    ) -> tuple[Float[Tensor, "N k V"], tuple[Past, ...]]:
        """Score elements of N independent frames.

        Args:
            context: The vector of each frame.
            previous: For each of the next k steps, the element before it; `UNSET_ID` if there is
                none.
            past: The second result of the call for the earlier steps; ``None`` at step 0.

        Returns:
            Scores of the k elements, and the keys and values that the call for the next steps
            needs.
        """
        first = 0 if past is None else past[0].shape[3]
        num_steps = previous.shape[1]
        x = self.project(context, first, num_steps) + self._embed(previous, first)
        bias = None
        if past is None or num_steps > 1:
            step = torch.arange(first + num_steps, device=x.device)[None]
            readable = span(SEQUENCE, "sequence", "sequence", step[:, first:] + 1)
            bias = score_bias(span_mask(readable, step)).expand(len(x), -1, -1, -1)
        done = []
        for i, layer in enumerate(self.layers):
            if past is None and self.config.checkpoint_activations:
                x, key_value = computed_again(layer, x, bias, first, None)
            else:
                x, key_value = layer(x, bias, first, None if past is None else past[i])
            done.append(key_value)
        return self.head(x, first), tuple(done)

    def _embed(self, previous: Int[Tensor, "N k"], first: int) -> Float[Tensor, "N k D"]:
        if first:
            return self.embedding(previous, first - 1)
        before_all = self.first_embedding(previous[:, :1])
        if previous.shape[1] == 1:
            return before_all
        return torch.cat((before_all, self.embedding(previous[:, 1:])), 1)

    def flops_per_frame(self) -> float:
        """Return the forward FLOPs of all steps of a frame, including masked attention entries."""
        linear = sum(part.flops() for part in self.modules() if isinstance(part, _Costed))
        return linear + 4 * self.config.width * self.num_steps**2 * self.config.num_layers

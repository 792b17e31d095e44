"""Every system and both probes in several tiny shapes, and what the contract's tests feed them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.streams.batch import Batch
from counterpoint.streams.schedule import may_stand
from counterpoint.streams.spec import UNSET_ID, Stream, Ticks
from counterpoint.systems import SYSTEMS
from counterpoint.systems.contract import System
from counterpoint.systems.hdlm import HdLM
from counterpoint.systems.shanks import ShanksConfig
from tests.probes.injected import Injected, InjectedConfig
from tests.probes.interleaved import Interleaved, InterleavedConfig
from tests.systems import tiny_lslm, tiny_models, tiny_moshi

PROBES: dict[str, type[System]] = {"injected": Injected, "interleaved": Interleaved}
"""Systems of the tests alone, which show that a newcomer needs one file."""

ALL_SYSTEMS: dict[str, type[System]] = {**SYSTEMS, **PROBES}

CONFIGS: dict[str, dict[str, Any]] = {
    **tiny_models.CONFIGS,
    "moshi": {**tiny_moshi.CONFIGS, "multi_token": tiny_moshi.MULTI_TOKEN},
    "lslm": tiny_lslm.CONFIGS,
    "shanks": {
        "features": ShanksConfig(
            tower=tiny_models.tower(12, 2, 2, 9), vocab_size=tiny_models.VOCAB, heard_width=3
        ),
        "words": ShanksConfig(tower=tiny_models.tower(12, 2, 2, 9), vocab_size=tiny_models.VOCAB),
        "tied": ShanksConfig(
            tower=tiny_models.tower(12, 2, 2, 9),
            vocab_size=tiny_models.VOCAB,
            heard_width=3,
            conv_taps=0,
            tied_head=True,
        ),
        "new_ids": ShanksConfig(
            tower=tiny_models.tower(12, 2, 2, 9), vocab_size=tiny_models.VOCAB, new_ids=4
        ),
        "tied_new_ids": ShanksConfig(
            tower=tiny_models.tower(12, 2, 2, 9),
            vocab_size=tiny_models.VOCAB,
            conv_taps=0,
            tied_head=True,
            new_ids=4,
        ),
        "parallel": ShanksConfig(
            tower=tiny_models.tower(12, 2, 2, 7),
            listener=tiny_models.tower(12, 1, 2, 5),
            vocab_size=tiny_models.VOCAB,
        ),
    },
    "injected": {
        "windowed": InjectedConfig(
            tower=tiny_models.tower(12, 3, 2, 7), vocab_size=tiny_models.VOCAB, heard_width=5
        ),
        "full": InjectedConfig(
            tower=tiny_models.tower(8, 2, 1, 200), vocab_size=tiny_models.VOCAB, heard_width=1
        ),
    },
    "interleaved": {
        "windowed": InterleavedConfig(
            tower=tiny_models.tower(12, 2, 2, 20), vocab_size=tiny_models.VOCAB, depths=(3, 2, 4)
        ),
        "full": InterleavedConfig(
            tower=tiny_models.tower(12, 2, 2, 500), vocab_size=tiny_models.VOCAB, depths=(2, 2, 2)
        ),
    },
}

IN_GROUPS = (
    ("hrt", "three_levels"),
    ("hrt", "words"),
    ("hrt", "learned"),
    ("single_stream", "strided"),
    ("single_stream", "summaries"),
    ("two_stream", "wavelet_lag2"),
    ("two_stream", "wavelet_early_lag1"),
    ("two_stream", "two_wholes"),
    ("two_stream", "two_wholes_shared_early_lag1"),
    ("two_stream", "dilated_at_one_rate"),
    ("two_stream", "recall_early_lag1"),
    ("two_stream", "slots_apart_early_lag1"),
    ("two_stream", "slots_apart_two_wholes"),
    ("two_stream", "learned_lag1"),
    ("two_stream", "text_recall"),
)
"""Shapes that are also tested with rows that read in groups; see `tests.systems.in_groups`."""


def build(system: str, name: str) -> System:
    """A model with random non-zero parameters."""
    model = tiny_models.randomised(ALL_SYSTEMS[system](CONFIGS[system][name]))
    assert isinstance(model, System)
    return model


def skip_if_rows_touch(model: System) -> None:
    """Leave out what is promised of independent rows where each reads the whole of the next one."""
    if getattr(model.config, "whole_control", "none") == "shuffled":
        pytest.skip("the rows of a shuffled whole read each other, in step")


def sizes(model: System) -> dict[str, Tensor]:
    """Ids of every element of a tick that is read, by stream, in the order of a frame.

    A vector is one element, of no ids.
    """
    streams = (*model.layout.predicted, *model.layout.heard)
    return {
        stream.name: torch.tensor(stream.sizes if stream.has_codebooks else stream.sizes[0])
        if stream.is_discrete
        else torch.tensor(0)
        for stream in streams
    }


def predicted(model: System) -> list[str]:
    """Streams that `forward` scores."""
    return [stream.name for stream in model.layout.predicted]


def random_ticks(model: System, rows: int, ticks: int) -> dict[str, Tensor]:
    """Random elements of every stream that is read, wherever one may stand."""
    drawn = {
        name: (torch.rand(rows, ticks, *size.shape) * size).long()
        if model.layout[name].is_discrete
        else torch.randn(rows, ticks, *model.layout[name].element_shape)
        for name, size in sizes(model).items()
    }
    for stream in model.layout.slow:
        drawn[stream.name][:, ~stands(model, stream, ticks)] = UNSET_ID
    return drawn


def stands(model: System, stream: Stream, num_ticks: int) -> Tensor:
    """The ticks of a row in which a stream may have an element: (T,)."""
    return may_stand(model.layout, stream, torch.arange(num_ticks))


def content_decides_places(model: System) -> bool:
    """Whether what an element is decides where later ones stand in a tower: rounding differs."""
    irregular = any(stream.irregular for stream in model.layout.streams)
    return irregular or isinstance(model, Interleaved | HdLM)


def batch_of(model: System, ticks: Ticks, starts: Tensor | None = None) -> Batch:
    """Rows as a batch; targets are the next elements of the same document."""
    shape = next(iter(ticks.values())).shape[:2]
    starts = torch.zeros(shape, dtype=torch.long) if starts is None else starts
    targets = {}
    for name in predicted(model):
        ids = ticks[name]
        same = (starts[:, 1:] == starts[:, :-1]).view(shape[0], -1, *[1] * (ids.ndim - 2))
        targets[name] = torch.full_like(ids, -1)
        targets[name][:, :-1] = torch.where(same, ids[:, 1:], -1)
    return Batch(ticks=ticks, targets=targets, document_start=starts, size=starts.numel())


def piece(by_stream: Ticks, first: int, stop: int) -> dict[str, Tensor]:
    """Some ticks of every stream."""
    return {name: value[:, first:stop] for name, value in by_stream.items()}


def rows_of(by_stream: Ticks, rows: Any) -> dict[str, Tensor]:
    """Some rows of every stream."""
    return {name: value[rows] for name, value in by_stream.items()}


def joined(pieces: list[dict[str, Tensor]], dim: int = 1) -> dict[str, Tensor]:
    """Ticks behind each other, stream by stream."""
    return {name: torch.cat([one[name] for one in pieces], dim) for name in pieces[0]}


def changed(model: System, ticks: Ticks) -> dict[str, Tensor]:
    """Another id for every element, or other numbers; what is unset stays so."""
    return {
        name: values + 1
        if values.is_floating_point()
        else torch.where(values == UNSET_ID, values, (values + 1) % sizes(model)[name])
        for name, values in ticks.items()
    }


def close(ours: Ticks, theirs: Ticks) -> None:
    """Equal to float tolerance, stream by stream; ``theirs`` may have more streams."""
    assert ours
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)


def equal(ours: Ticks, theirs: Ticks) -> bool:
    """Equal bit for bit."""
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )

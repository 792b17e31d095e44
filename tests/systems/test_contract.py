"""What every system promises offline: causality, documents, training, storage, costs."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from counterpoint.blocks.pyramid import lay_levels
from counterpoint.errors import UserError
from counterpoint.streams.batch import Batch
from counterpoint.streams.schedule import may_stand
from counterpoint.streams.spec import UNSET_ID, Ticks
from counterpoint.systems import build_system, system_layout
from counterpoint.systems.contract import System
from counterpoint.systems.hrt import HRT
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream
from counterpoint.tracing import tracing
from tests.systems.contract_models import (
    ALL_SYSTEMS,
    CONFIGS,
    batch_of,
    changed,
    close,
    content_decides_places,
    equal,
    joined,
    piece,
    predicted,
    random_ticks,
    rows_of,
    sizes,
    skip_if_rows_touch,
)
from tests.systems.counted_flops import CountedFlops
from tests.systems.tiny_models import single, two
from tests.systems.tiny_moshi import CONFIGS as MOSHI

LEARNED = 0.3  # nats


def scores(model: System, ticks: Ticks, starts: Tensor | None = None) -> Ticks:
    with torch.no_grad():
        return model(batch_of(model, ticks, starts))


def places(by_stream: Ticks) -> Tensor:
    """Elements of all streams side by side, in the order of a frame: (B, T, places)."""
    return torch.cat(
        [value.flatten(2) if value.ndim > 2 else value[..., None] for value in by_stream.values()],
        2,
    )


def packed(
    documents: list[dict[str, Tensor]], block_ticks: int
) -> tuple[dict[str, Tensor], Tensor, list[int]]:
    """One row of documents, each padded to whole blocks, and where each starts."""
    parts: list[dict[str, Tensor]] = []
    starts: list[Tensor] = []
    first: list[int] = []
    at = 0
    for document in documents:
        num_ticks = length_of(document)
        length = -(-num_ticks // block_ticks) * block_ticks
        # Streams that are unset in some columns are unset in what fills a document up.
        blank = {
            name: ids.new_full(
                (1, length - num_ticks, *ids.shape[2:]), UNSET_ID if (ids == UNSET_ID).any() else 0
            )
            for name, ids in document.items()
        }
        parts.append(joined([document, blank]))
        starts.append(torch.full((1, length), at))
        first.append(at)
        at += length
    return joined(parts), torch.cat(starts, 1), first


def length_of(ticks: Ticks) -> int:
    return next(iter(ticks.values())).shape[1]


def fullest_row(model: System, num_ticks: int) -> dict[str, Tensor]:
    """A row with as many blocks as there can be: where blocks may end early, all do."""
    ends = getattr(model.config, "boundary_ids", ())
    row = random_ticks(model, 1, num_ticks)
    return {name: torch.full_like(ids, ends[0]) for name, ids in row.items()} if ends else row


def test_every_system_has_configurations() -> None:
    assert set(CONFIGS) == set(ALL_SYSTEMS)
    assert all(CONFIGS.values())


@pytest.mark.parametrize("system", CONFIGS)
def test_a_convolution_has_no_negative_number_of_taps(system: str) -> None:
    config = next(iter(CONFIGS[system].values()))
    if hasattr(config, "conv_taps"):
        with pytest.raises(UserError, match="`conv_taps` must be >= 0"):
            replace(config, conv_taps=-1)


def test_a_layout_is_made_once_for_equal_configs() -> None:
    config = CONFIGS["two_stream"]["wavelet_lag1"]
    found = system_layout(config)
    assert found == build_system(config, 0).layout
    assert system_layout(replace(config)) is found
    assert system_layout(replace(config, block_ticks=2 * config.block_ticks)) != found
    with pytest.raises(UserError, match="`system` must be one of"):
        system_layout({})


def test_every_system_follows_the_contract(model: System) -> None:
    contract: System = model  # mypy compares all signatures
    batch = batch_of(model, random_ticks(model, 2, 12))
    assert set(contract.forward(batch)) == set(predicted(model)) == set(batch.targets)
    assert set(predicted(model)) <= {stream.name for stream in contract.layout.streams}


def test_every_element_depends_on_what_came_before_it_alone(model: System) -> None:
    """Change each element of each tick: what is produced before or with it stays the same.

    Every phase of the block, and several windows. Where blocks end early, the two batches may have
    unequally many blocks, so that products round in another way: there it is the same to 1e-5.
    If a row reads the next one, that changes no earlier; the last row, left out, never changes.
    """
    num_ticks = 37
    rounding = 1e-5 if any(stream.irregular for stream in model.layout.streams) else 0.0
    plain = random_ticks(model, 1, num_ticks)
    elements = [(name, i) for name, size in sizes(model).items() for i in range(size.numel())]
    changes = [
        (tick, place)
        for tick in range(num_ticks)
        for place, (name, _) in enumerate(elements)
        if may_stand(model.layout, model.layout[name], torch.tensor(tick))
    ]
    num_rows = len(changes) + 1
    plain = {name: ids.repeat(num_rows, *[1] * (ids.ndim - 1)) for name, ids in plain.items()}
    other, mixed = changed(model, plain), {name: ids.clone() for name, ids in plain.items()}
    for row, (tick, place) in enumerate(changes):
        name, codebook = elements[place]
        mixed[name][row, tick].view(-1)[codebook] = other[name][row, tick].view(-1)[codebook]
    found, expected = (rows_of(scores(model, rows), slice(0, -1)) for rows in (mixed, plain))
    moved = places({name: (found[name] != expected[name]).any(-1) for name in expected})
    far = {n: ~((found[n] - expected[n]).abs() <= rounding) for n in expected}
    moved_far = moved & places({name: differs.any(-1) for name, differs in far.items()})
    produced, at = torch.arange(moved.shape[2]), torch.arange(num_ticks)[:, None]
    when, place_in = torch.tensor(changes)[:, :, None, None].unbind(1)
    before = (at + 1 < when) | ((at + 1 == when) & (produced <= place_in))
    assert not moved_far[before].any()
    # Whoever comes next reads it: later in its frame, then at once, then a tick later.
    assert moved[(at + 1 == when) & (produced > place_in)].all()
    assert moved[(at == when) & (produced >= 0)].all()
    assert moved[(at == when + 1) & (produced >= 0)].all()


def test_documents_in_a_row_equal_documents_alone(model: System) -> None:
    block = model.layout.block_ticks
    # Shorter than a block, shorter than a window, longer than three; the last one is cut mid-block.
    lengths = (2, 3 * block, 5 * block + 1, 24, 2 * block + 1)
    documents = [random_ticks(model, 1, length) for length in lengths]
    ticks, starts, first = packed(documents, block)
    row = scores(model, ticks, starts)
    for document, at in zip(documents, first, strict=True):
        close(piece(row, at, at + length_of(document)), scores(model, document))


def test_documents_in_a_row_do_not_touch(model: System) -> None:
    block = model.layout.block_ticks
    documents = [random_ticks(model, 1, length) for length in (4 * block, 3 * block, 5 * block)]
    ticks, starts, first = packed(documents, block)
    before = scores(model, ticks, starts)
    for i, document in enumerate(documents):
        start, stop = first[i], first[i] + length_of(document)
        others = joined([changed(model, piece(ticks, start, stop))])
        mixed = joined([piece(ticks, 0, start), others, piece(ticks, stop, length_of(ticks))])
        after = scores(model, mixed, starts)
        own = piece({name: after[name] != before[name] for name in before}, start, stop)
        assert all(value.any(-1).all() for value in own.values())
        for name, value in after.items():
            value[:, start:stop] = before[name][:, start:stop]
        close(after, before)
        if not content_decides_places(model):
            assert equal(after, before)


def test_rows_of_a_batch_do_not_touch(model: System) -> None:
    """Bit for bit where shapes are equal; where blocks end early, they follow the fullest row."""
    skip_if_rows_touch(model)
    ticks, others = random_ticks(model, 3, 29), random_ticks(model, 2, 29)
    mixed = joined([rows_of(ticks, slice(0, 1)), others], dim=0)
    close(rows_of(scores(model, mixed), 0), rows_of(scores(model, ticks), 0))
    full = fullest_row(model, 29)
    before, after = (scores(model, joined([rows, full], dim=0)) for rows in (ticks, mixed))
    assert equal(rows_of(after, 0), rows_of(before, 0))


def test_loss_counts_the_nats_of_all_targets(model: System) -> None:
    block = model.layout.block_ticks
    documents = [random_ticks(model, 1, length) for length in (4 * block, 3 * block)]
    ticks, starts, _ = packed(documents, block)
    batch = batch_of(model, ticks, starts)
    with torch.no_grad():
        loss = model.loss(batch)
    nats, total = 0.0, 0.0
    for name, logits in scores(model, ticks, starts).items():
        likelihood = torch.log_softmax(logits.double(), -1).flatten(0, -2)
        targets = batch.targets[name].flatten().tolist()
        own = -sum(float(likelihood[i, id_]) for i, id_ in enumerate(targets) if id_ >= 0)
        nats += own
        total += own / len(targets)
    assert math.isclose(float(loss.nats), nats, rel_tol=1e-5)
    if isinstance(model, Moshi | TwoStream) and len(batch.targets) > 1:
        return  # weighs them: see the tests of the system
    if len(batch.targets) == 1:  # the terms of several streams are their own means
        for name, value in loss.terms.items():
            total += model.loss_factor(name) * float(value)
    assert math.isclose(float(loss.total), total, rel_tol=1e-5)


def test_stages_of_a_training_leave_the_finished_model_as_it_is(model: System) -> None:
    """Every stage can be learned from; afterwards and in evaluation mode nothing of it is left."""
    trained = copy.deepcopy(model)
    ticks = random_ticks(model, 2, 29)
    batch = batch_of(model, ticks)
    starts = model.stages(20)
    assert starts[0] == 0
    assert list(starts) == sorted(set(starts))
    assert starts[-1] < 20
    torch.manual_seed(3)
    expected = model.train().losses(batch)
    for step in starts:
        trained.at_step(step, 20)
        assert equal(scores(trained.eval(), ticks), scores(model.eval(), ticks))
        assert trained.train().loss(batch).total.isfinite()
    trained.at_step(20, 20)
    torch.manual_seed(3)
    for name, sums in trained.losses(batch).items():
        assert all(map(torch.equal, sums, expected[name]))


def test_gradient_reaches_every_parameter(model: System) -> None:
    trained = copy.deepcopy(model).train()
    trained.loss(batch_of(model, random_ticks(model, 4, 41))).total.backward()
    for name, weight in trained.named_parameters():
        if not weight.requires_grad:
            continue
        if weight.numel():  # a table of nothing, where a single codebook is never read back
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
            assert weight.grad.count_nonzero() > 0, name


@pytest.mark.parametrize(
    ("system", "name"),
    [(system, name) for system in ALL_SYSTEMS for name in CONFIGS[system] if name != "wide_ring"],
)
def test_one_batch_is_learned_by_heart(system: str, name: str) -> None:
    model = ALL_SYSTEMS[system](CONFIGS[system][name]).train()
    batch = batch_of(model, random_ticks(model, 1, 17))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02, fused=True)  # one call a step
    num_targets = sum(int((ids >= 0).sum()) for ids in batch.targets.values())
    nats: list[float] = []
    while len(nats) < 60 and (not nats or nats[-1] > LEARNED):
        optimiser.zero_grad()
        loss = model.loss(batch)
        loss.total.backward()
        optimiser.step()
        nats.append(loss.nats.item() / num_targets)
    dice = sum(
        float((sizes(model)[stream].log() * (ids >= 0)).sum())
        for stream, ids in batch.targets.items()
    )
    assert math.isclose(nats[0], dice / num_targets, rel_tol=1e-5)  # the heads start at zero
    assert nats[-1] <= LEARNED


def test_weights_survive_safetensors(model: System, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = type(model)(model.config)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    ticks = random_ticks(model, 2, 29)
    assert equal(scores(again.eval(), ticks), scores(model, ticks))


def test_keys_of_the_weights_are_stable() -> None:
    """Names in checkpoints: changing one needs a converter."""
    layer = [
        "attention_norm.weight", "attention.qkv.weight", "attention.out.weight",
        "mlp_norm.weight", "mlp.gate_up.weight", "mlp.down.weight",
    ]  # fmt: skip
    ends = {"embedding.weight", "conv.weight", "norm.weight", "head.weight"}
    expected = ends | {f"tower.layers.{i}.{key}" for i in range(2) for key in layer}
    assert set(SingleStream(single(7)).state_dict()) == expected
    expected = ends | {"block_norm.weight", "merge.weight", "whole_norm.weight"}
    expected |= {"steering.plan.weight", "steering.no_plan"}
    expected |= {"compressor.predict", "compressor.update", "reconstructor.unfold.weight"}
    expected |= {f"part.layers.{i}.{key}" for i in range(3) for key in layer}
    expected |= {f"whole.layers.{i}.{key}" for i in range(2) for key in layer}
    link = [
        "norm.weight", "query.weight", "key_value.weight", "null", "gate.weight", "gate.bias",
        "out.weight",
    ]  # fmt: skip
    expected |= {f"steering.links.{i}.{key}" for i in range(2) for key in link}
    assert set(TwoStream(two("wavelet", 1)).state_dict()) == expected
    expected = {"norm.weight", "head.weight", "depth.project.weight", "depth.head.weight"}
    tables = ["text_embedding", "audio_embedding", "depth.first_embedding", "depth.embedding"]
    expected |= {f"{table}.table.weight" for table in tables}
    expected |= {f"temporal.layers.{i}.{key}" for i in range(2) for key in layer}
    step = [key.replace("attention.", "").replace("mlp.", "") for key in layer]
    expected |= {f"depth.layers.{i}.{key}" for i in range(2) for key in step}
    assert set(Moshi(MOSHI["both_speakers"]).state_dict()) == expected


def test_training_looks_at_no_value(model: System) -> None:
    """As compiled graphs, CUDA graphs and stacks of models need it."""
    trained = copy.deepcopy(model).to("meta").train()  # there no tensor has values
    batch = batch_of(model, random_ticks(model, 2, 33)).to("meta")
    with tracing():
        assert trained.loss(batch).total.is_meta


def num_coarse_steps(model: TwoStream | HRT, batch: Batch) -> int:
    """Number of blocks in the fullest row."""
    if isinstance(model, TwoStream):
        return model.read_whole(batch).whole.shape[1]
    early = model.ends_block[batch.ticks["part"]]
    counts = model.initial_state(len(early)).counts
    shape = (len(early), early.shape[1])
    (blocks, *_) = lay_levels(
        shape, model.config.strides, batch.document_start, None, counts, early
    )
    return blocks.grid.end.shape[1]


@pytest.mark.parametrize("num_ticks", [3, 14, 61])
def test_flops_agree_with_counted_ones(model: System, num_ticks: int) -> None:
    batch = batch_of(model, random_ticks(model, 4, num_ticks))
    if isinstance(model, TwoStream | HRT) and model.config.boundary_ids:
        num_blocks = num_coarse_steps(model, batch)  # what this text has
        config = replace(model.config, usual_block_ticks=num_ticks / max(num_blocks, 0.9))
        model = build_system(config, 0)
    trained = copy.deepcopy(model).train()
    # torch counts nothing for its fused attention on CPU; as plain products it counts them all.
    with sdpa_kernel(SDPBackend.MATH):
        with CountedFlops() as forward, torch.no_grad():
            model(batch)
        with CountedFlops() as training:
            trained.loss(batch).total.backward()
    assert model.flops_per_tick(num_ticks) * 4 * num_ticks == pytest.approx(forward.total, rel=0.02)
    assert model.flops_per_tick(num_ticks, training=True) * 4 * num_ticks == pytest.approx(
        training.total, rel=0.02
    )


def test_flops_are_counted_as_torch_counts_them() -> None:
    model = ALL_SYSTEMS["two_stream"](CONFIGS["two_stream"]["wavelet_lag1"])
    batch = batch_of(model, random_ticks(model, 2, 33))
    with FlopCounterMode(display=False) as theirs, CountedFlops() as ours:
        model.loss(batch).total.backward()
    assert ours.total == theirs.get_total_flops() > 0

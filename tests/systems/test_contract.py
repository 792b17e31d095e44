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

from counterpoint.systems import SYSTEMS
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream
from tests.systems.tiny_models import CONFIGS, VOCAB, batch_of, single, two

System = SingleStream | TwoStream


def random_ids(rows: int, ticks: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, ticks))


def scores(model: System, ids: Tensor, starts: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(batch_of(ids, starts))["part"]


def packed(documents: list[Tensor], block_ticks: int) -> tuple[Tensor, Tensor, list[int]]:
    """One row of documents, each padded to whole blocks, and where each starts."""
    ids: list[Tensor] = []
    starts: list[Tensor] = []
    first: list[int] = []
    for document in documents:
        at = sum(len(piece) for piece in ids)
        length = -(-len(document) // block_ticks) * block_ticks
        ids.append(torch.cat((document, document.new_zeros(length - len(document)))))
        starts.append(torch.full((length,), at))
        first.append(at)
    return torch.cat(ids)[None], torch.cat(starts)[None], first


def test_every_system_has_configurations() -> None:
    assert set(CONFIGS) == set(SYSTEMS)
    assert all(CONFIGS.values())


def test_forward_is_causal_at_every_phase(model: System) -> None:
    num_ticks = 37  # every phase of the block, and several windows
    ids = random_ids(1, num_ticks).expand(num_ticks, -1)
    perturbed = ids.clone()
    perturbed.diagonal().copy_((perturbed.diagonal() + 1) % VOCAB)  # row k changes at tick k
    moved = (scores(model, ids) != scores(model, perturbed)).any(-1)
    past = torch.ones(num_ticks, num_ticks, dtype=torch.bool).tril(-1)
    assert not moved[past].any()
    assert moved.diagonal().all()
    # Everything but the last ticks is used further on.
    assert moved[:-1].diagonal(1).all()


def test_documents_in_a_row_equal_documents_alone(model: System) -> None:
    block = model.layout.block_ticks
    # Shorter than a block, shorter than a window, longer than three; the last one is cut mid-block.
    lengths = (2, 3 * block, 5 * block + 1, 24, 2 * block + 1)
    documents = [random_ids(1, length)[0] for length in lengths]
    ids, starts, first = packed(documents, block)
    row = scores(model, ids, starts)[0]
    for document, at in zip(documents, first, strict=True):
        alone = scores(model, document[None])[0]
        torch.testing.assert_close(row[at : at + len(document)], alone, rtol=0, atol=1e-5)


def test_documents_in_a_row_do_not_touch(model: System) -> None:
    block = model.layout.block_ticks
    documents = [random_ids(1, length)[0] for length in (4 * block, 3 * block, 5 * block)]
    ids, starts, first = packed(documents, block)
    before = scores(model, ids, starts)
    for i, document in enumerate(documents):
        changed = ids.clone()
        mine = slice(first[i], first[i] + len(document))
        changed[:, mine] = (changed[:, mine] + 1) % VOCAB
        after = scores(model, changed, starts)
        assert (after != before).any(-1)[0, mine].all()
        after[:, mine] = before[:, mine]
        if getattr(model.config, "boundary_ids", ()):  # the row has other shapes: rounding differs
            torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
        else:
            assert torch.equal(after, before)


def test_rows_of_a_batch_do_not_touch(model: System) -> None:
    ids = random_ids(3, 29)
    before = scores(model, ids)
    ids[1:] = random_ids(2, 29)
    assert torch.equal(scores(model, ids)[0], before[0])


def test_loss_is_the_mean_of_the_targets_and_terms(model: System) -> None:
    block = model.layout.block_ticks
    documents = [random_ids(1, length)[0] for length in (4 * block, 3 * block)]
    ids, starts, _ = packed(documents, block)
    batch = batch_of(ids, starts)
    with torch.no_grad():
        loss = model.loss(batch)
    likelihood = torch.log_softmax(scores(model, ids, starts).double(), -1)
    nats = -sum(
        likelihood[0, tick, int(target)]
        for tick, target in enumerate(batch.targets["part"][0])
        if target >= 0
    )
    assert math.isclose(float(loss.nats), float(nats), rel_tol=1e-5)
    total = float(nats) / ids.numel()
    for name, value in loss.terms.items():
        total += getattr(model.config, f"{name}_weight") * float(value)
    assert math.isclose(float(loss.total), total, rel_tol=1e-5)


def test_gradient_reaches_every_parameter(model: System) -> None:
    trained = copy.deepcopy(model).train()
    trained.loss(batch_of(random_ids(4, 41))).total.backward()
    for name, weight in trained.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.count_nonzero() > 0, name


@pytest.mark.parametrize(
    ("system", "name"),
    [(system, name) for system in SYSTEMS for name in CONFIGS[system] if name != "wide_ring"],
)
def test_one_batch_is_learned_by_heart(system: str, name: str) -> None:
    model = SYSTEMS[system](CONFIGS[system][name]).train()
    batch = batch_of(random_ids(1, 17))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    nats: list[float] = []
    while len(nats) < 40 and (not nats or nats[-1] > 0.3):
        optimiser.zero_grad()
        loss = model.loss(batch)
        loss.total.backward()
        optimiser.step()
        nats.append(loss.nats.item() / 16)
    assert math.isclose(nats[0], math.log(VOCAB), rel_tol=1e-5)  # the head starts at zero
    assert nats[-1] <= 0.3


def test_weights_survive_safetensors(model: System, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again: System = (type(model))(model.config)  # type: ignore[arg-type]
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    ids = random_ids(2, 29)
    assert torch.equal(scores(again.eval(), ids), scores(model, ids))


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


@pytest.mark.parametrize("num_ticks", [3, 7, 14, 33, 61])
def test_flops_agree_with_counted_ones(model: System, num_ticks: int) -> None:
    batch = batch_of(random_ids(4, num_ticks))
    if isinstance(model, TwoStream) and model.config.boundary_ids:
        num_blocks = model.read(batch).whole.shape[1]  # what this text has
        config = replace(model.config, usual_block_ticks=num_ticks / max(num_blocks, 0.9))
        model = TwoStream(config)
    trained = copy.deepcopy(model).train()
    # torch counts nothing for its fused attention on CPU; as plain products it counts them all.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(batch)
        with FlopCounterMode(display=False) as training:
            trained.loss(batch).total.backward()
    assert model.flops_per_tick(num_ticks) * 4 * num_ticks == pytest.approx(
        forward.get_total_flops(), rel=0.02
    )
    assert model.flops_per_tick(num_ticks, training=True) * 4 * num_ticks == pytest.approx(
        training.get_total_flops(), rel=0.02
    )

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.moshi import Moshi, moshi_7b, tiny
from counterpoint.systems.moshi_streams import AudioStream, MoshiConfig, two_speakers
from tests.systems.test_streaming_contract import random_chunks, tensors
from tests.systems.tiny_moshi import (
    AUDIO_VOCAB,
    CONFIGS,
    TEXT_VOCAB,
    as_batch,
    build,
    config,
    frames_of,
    random_codes,
    write_logits,
)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Iterator[Moshi]:
    """Several shapes, with random non-zero parameters. Shared: do not change it."""
    torch.manual_seed(1)
    model = build(request.param)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    yield model
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "a test changed the model"


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def all_close(ours: Ticks, theirs: Ticks) -> None:
    assert set(ours) == set(theirs)
    for name in ours:
        close(ours[name], theirs[name])


@torch.no_grad()
def scores(model: Moshi, batch: Batch) -> Ticks:
    return model(batch)


def joined(by_stream: Ticks) -> Tensor:
    """Elements of all streams side by side, in the order of a frame: (B, T, places, ...)."""
    first, *audio = by_stream.values()
    return torch.cat((first[:, :, None], *audio), 2)


def places(moved: Ticks) -> Tensor:
    """Which elements of a frame moved, (B, T, places); the vocabularies differ."""
    return joined({name: value.any(-1) for name, value in moved.items()})


# Offline


def test_every_element_depends_on_what_came_before_it_alone(model: Moshi) -> None:
    """Change each element of each frame: what is produced before or with it stays the same."""
    num_ticks = 9
    frames = {name: ids[:1] for name, ids in frames_of(model, 1, num_ticks).items()}
    elements = [
        (name, codebook) for name, ids in frames.items() for codebook in range(ids[0, 0].numel())
    ]
    elements.sort(key=lambda element: (model.layout.place(element[0]), element[1]))
    changes = [(tick, place) for tick in range(num_ticks) for place in range(len(elements))]
    rows = {name: ids.repeat(len(changes), *[1] * (ids.ndim - 1)) for name, ids in frames.items()}
    for row, (tick, place) in enumerate(changes):
        name, codebook = elements[place]
        element = rows[name][row, tick].view(-1)[codebook : codebook + 1]
        element.copy_((element + 1) % (TEXT_VOCAB if name == "text" else AUDIO_VOCAB))
    changed = scores(model, as_batch(rows, model))
    same = {name: ids.repeat(len(changes), *[1] * (ids.ndim - 1)) for name, ids in frames.items()}
    plain = scores(model, as_batch(same, model))
    moved = places({name: changed[name] != plain[name] for name in plain})
    num_places = moved.shape[2]
    for row, (tick, place) in enumerate(changes):
        for at in range(num_ticks - 1):  # what is produced at tick `at` is frame `at` + 1
            for produced in range(num_places):
                if (at + 1, produced) <= (tick, place):
                    assert not moved[row, at, produced]
                elif at + 1 == tick or (at == tick and produced == 0):
                    assert moved[row, at, produced]


def test_documents_in_a_row_equal_documents_alone(model: Moshi) -> None:
    batches = [model.batch(random_codes(model, 1, length)) for length in (1, 20, 3, 9)]
    lengths = [batch.document_start.shape[1] for batch in batches]
    first = [sum(lengths[:i]) for i in range(len(lengths))]

    def row(part: str) -> dict[str, Tensor]:
        names = getattr(batches[0], part)
        return {name: torch.cat([getattr(b, part)[name] for b in batches], 1) for name in names}

    starts = torch.cat([torch.full((1, n), at) for n, at in zip(lengths, first, strict=True)], 1)
    packed = Batch(ticks=row("ticks"), targets=row("targets"), document_start=starts, num_bytes=0)
    together = scores(model, packed)
    for batch, at, length in zip(batches, first, lengths, strict=True):
        piece = {name: value[:, at : at + length] for name, value in together.items()}
        all_close(piece, scores(model, batch))


def test_batch_delays_streams_behind_a_frame_of_initial_ids() -> None:
    model = build("own_delays")
    codes = {
        "text": torch.tensor([[1, 2, 3, 4, 5, 6]]),
        **{f"codebook_{i}": torch.tensor([[[6], [1], [2], [3], [4], [5]]]) for i in range(3)},
    }
    batch = model.batch(codes)
    assert batch.ticks["text"].tolist() == [[11, 1, 2, 3, 4, 5]]
    assert batch.targets["text"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch.ticks["codebook_0"][0, :, 0].tolist() == [7, 7, 6, 1, 2, 3]
    assert batch.targets["codebook_0"][0, :, 0].tolist() == [7, 6, 1, 2, 3, 4]
    assert batch.ticks["codebook_2"][0, :, 0].tolist() == [7, 7, 7, 7, 7, 6]
    assert batch.targets["codebook_2"][0, :, 0].tolist() == [7, 7, 7, 7, 6, 1]


def test_batch_is_causal_and_leaves_the_heard_streams_unpredicted() -> None:
    batch = build("agent_only").batch(random_codes(build("agent_only"), 2, 5))
    assert set(batch.targets) == {"text", "agent_semantic", "agent_acoustic"}
    assert set(batch.ticks) == {*batch.targets, "user_semantic", "user_acoustic"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_semantic": None}, "for all streams"),
        ({"user_semantic": torch.zeros(1, 5, dtype=torch.long)}, r"shape \(1, 5, 1\): got"),
        ({"text": torch.full((1, 5), TEXT_VOCAB)}, "-1 .unset. to 10: got 11 to 11"),
        ({"agent_semantic": torch.full((1, 5, 1), -2)}, "-1 .unset. to 6: got -2 to -2"),
    ],
)
def test_batch_refuses_codes_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    model = build("agent_only")
    codes = random_codes(model, 1, 5) | change
    with pytest.raises(ValueError, match=message):
        model.batch({name: ids for name, ids in codes.items() if ids is not None})


# Losses


def expected_loss(model: Moshi, batch: Batch) -> tuple[float, float, float]:
    """Text, audio and unweighted nats, element by element."""
    weights = {stream.name: stream.loss_weight for stream in model.config.audio}
    sums = {"text": [0.0, 0.0], "audio": [0.0, 0.0]}
    nats = 0.0
    for name, logits in scores(model, batch).items():
        likelihood = torch.log_softmax(logits.double(), -1).flatten(0, -2)
        for place, target in enumerate(batch.targets[name].flatten().tolist()):
            if 0 <= target < logits.shape[-1]:
                value = -float(likelihood[place, target])
                light = name == "text" and target in model.config.text_light_ids
                weight = model.config.text_light_weight if light else weights.get(name, 1.0)
                kind = "text" if name == "text" else "audio"
                sums[kind][0] += weight * value
                sums[kind][1] += weight
                nats += value
    text, audio = (a / b if b else 0.0 for a, b in sums.values())
    return text, audio, nats


def test_loss_weighs_every_element(model: Moshi) -> None:
    codes = random_codes(model, 3, 8)
    codes["text"][0, :5] = 3  # padding
    codes["text"][1, 2] = -1
    codes[model.predicted[0].name][2, 3:6, 0] = -1
    batch = model.batch(codes)
    text, audio, nats = expected_loss(model, batch)
    with torch.no_grad():
        loss = model.loss(batch)
    assert math.isclose(float(loss.terms["text"]), text, rel_tol=1e-5)
    assert math.isclose(float(loss.terms["audio"]), audio, rel_tol=1e-5)
    assert math.isclose(float(loss.total), text + audio, rel_tol=1e-5)
    assert math.isclose(float(loss.nats), nats, rel_tol=1e-5)
    parts = [
        loss.terms[f"{name}_nats"] * ((ids >= 0) & (ids < model.initial_ids[name])).sum()
        for name, ids in batch.targets.items()
    ]
    close(torch.stack(parts).sum(), loss.nats)


def test_semantic_codebooks_and_padding_have_the_weights_of_the_paper() -> None:
    for audio in (moshi_7b(16).audio, tiny().audio):
        weights = {stream.name: stream.loss_weight for stream in audio}
        assert weights["agent_semantic"] == weights["user_semantic"] == 100
        assert weights["agent_acoustic"] == weights["user_acoustic"] == 1
    assert (moshi_7b().text_light_ids, moshi_7b().text_light_weight) == ((3,), 0.5)


def test_unset_ids_embed_to_zero_whatever_the_tables_hold(model: Moshi) -> None:
    frames = {name: torch.full_like(ids, -1) for name, ids in frames_of(model, 1, 4).items()}
    assert not model._embed(frames).any()
    embedding = model.depth.first_embedding
    assert not embedding(torch.full((2, 1), -1)).any()


def test_text_only_batch_trains_the_text_beside_unset_audio(model: Moshi) -> None:
    text = torch.randint(0, TEXT_VOCAB, (2, 9))
    codes = {name: torch.full_like(ids, -1) for name, ids in random_codes(model, 2, 9).items()}
    alone, beside = model.batch({"text": text}), model.batch(codes | {"text": text})
    assert set(scores(model, alone)) == {"text"}
    close(scores(model, alone)["text"], scores(model, beside)["text"])
    with torch.no_grad():
        loss, other = model.loss(alone), model.loss(beside)
    close(loss.total, other.total)
    close(loss.total, loss.terms["text"])
    assert float(loss.terms["audio"]) == 0
    assert loss.nats > 0


def test_gradient_reaches_every_parameter(model: Moshi) -> None:
    trained = copy.deepcopy(model).train()
    trained.loss(trained.batch(random_codes(trained, 3, 9))).total.backward()
    for name, weight in trained.named_parameters():
        if weight.numel():  # with one codebook nothing is read back
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
            assert weight.grad.count_nonzero() > 0, name


@pytest.mark.parametrize("name", CONFIGS)
def test_one_batch_is_learned_by_heart(name: str) -> None:
    model = Moshi(CONFIGS[name]).train()
    batch = model.batch(random_codes(model, 1, 9))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    losses: list[float] = []
    while len(losses) < 60 and (not losses or losses[-1] > 0.3):
        optimiser.zero_grad()
        loss = model.loss(batch).total
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    dice = math.log(TEXT_VOCAB) + math.log(AUDIO_VOCAB)  # the heads start at zero
    assert math.isclose(losses[0], dice, rel_tol=1e-5)
    assert losses[-1] <= 0.3


# Streaming


@torch.no_grad()
def stream(model: Moshi, frames: Ticks, chunks: list[int], state: Any = None) -> Tensor:
    """What `read` returns for all frames, given in chunks."""
    state = model.initial_state(len(frames["text"])) if state is None else state
    pieces, first = [], 0
    for length in chunks:
        piece = {name: ids[:, first : first + length] for name, ids in frames.items()}
        z, state = model.read(piece, state)
        pieces.append(z)
        first += length
    return torch.cat(pieces, 1)


def test_streaming_in_any_chunks_is_offline(model: Moshi) -> None:
    """Several times around the ring of cached frames."""
    batch = model.batch(random_codes(model, 2, 50))
    with torch.no_grad():
        text = scores(model, batch)["text"]
        for chunks in (random_chunks(50, 9), [49, 0, 1], [1] * 50):
            close(model.head(stream(model, batch.ticks, chunks)), text)


def test_writing_element_by_element_is_offline(model: Moshi) -> None:
    batch = model.batch(random_codes(model, 2, 15))
    with torch.no_grad():
        z = stream(model, batch.ticks, random_chunks(15, 4))
        all_close(write_logits(model, z, batch.targets), scores(model, batch))


def test_extend_scores_the_text_behind_every_frame(model: Moshi) -> None:
    batch = model.batch(random_codes(model, 2, 21))
    with torch.no_grad():
        first, state = model.extend(batch.ticks, model.initial_state(2))
    close(first["text"], scores(model, batch)["text"])
    assert state.position.tolist() == [21, 21]


def test_rows_of_different_lengths_equal_rows_alone(model: Moshi) -> None:
    """Rows get different numbers of frames in every call; none is a pause."""
    lengths = (torch.rand(12, 3) * torch.tensor([1, 2, 5, 20]).repeat(3)[:, None] + 0.9).long()
    lengths[:3, 0] = 0
    frames = frames_of(model, 3, int(lengths.sum(0).max()) + 1)
    alone = stream(model, frames, [frames["text"].shape[1]])
    read, state = torch.zeros(3, dtype=torch.long), model.initial_state(3)
    for real in lengths:
        width = int(real.max()) + 1
        index = (read[:, None] + torch.arange(width)).clamp(max=frames["text"].shape[1] - 1)
        chunk = {name: ids[torch.arange(3)[:, None], index] for name, ids in frames.items()}
        with torch.no_grad():
            z, state = model.read(chunk, state, real)
        for row in range(3):
            close(z[row, : real[row]], alone[row, read[row] : read[row] + real[row]])
        read += real


def test_rows_are_isolated_bit_for_bit(model: Moshi) -> None:
    """Row 0 writes the same while the others read other things, pause and reset."""
    mine = frames_of(model, 1, 30)

    @torch.no_grad()
    def run(busy: bool) -> list[Tensor]:
        state, found = model.initial_state(3), []

        def choose(stream: str, codebook: int, logits: Tensor) -> Tensor:
            found.append(logits[0])
            return logits.argmax(-1)

        for tick in range(30):
            chunk = {name: ids[:, 4:].clone() for name, ids in frames_of(model, 3, 5).items()}
            for name, ids in chunk.items():
                ids[0] = mine[name][0, tick]
            lengths = torch.tensor([1, tick % 2, int(tick > 9)] if busy else [1, 1, 1])
            if busy and tick == 17:
                for tensor in tensors(state):
                    tensor[2] = 0
            z, state = model.read(chunk, state, lengths)
            found += [ids[0] for ids in model.write(z[:, 0], choose).values()]
        return found

    for quiet, busy in zip(run(False), run(True), strict=True):
        assert torch.equal(quiet, busy)


def test_zeroed_row_is_a_new_session(model: Moshi) -> None:
    first, second = frames_of(model, 3, 15), frames_of(model, 3, 13)
    with torch.no_grad():
        _, state = model.read(first, model.initial_state(3))
    for tensor in tensors(state):
        assert len(tensor) == 3
        tensor[1] = 0
    going_on = stream(model, second, random_chunks(13, 5), state)
    close(going_on[1], stream(model, second, [13])[1])
    whole = {name: torch.cat((ids, second[name]), 1) for name, ids in first.items()}
    close(going_on[[0, 2]], stream(model, whole, [28])[[0, 2], 15:])
    assert not any(tensor.any() for tensor in tensors(model.initial_state(2)))


# Weights, sizes, costs


def test_weights_survive_safetensors(model: Moshi, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = Moshi(model.config)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    batch = model.batch(random_codes(model, 2, 9))
    for name, value in scores(again.eval(), batch).items():
        assert torch.equal(value, scores(model, batch)[name])


def test_trimmed_model_writes_the_same(model: Moshi) -> None:
    kept = model.predicted[:1]
    small = model.trimmed(sum(stream.depth for stream in kept))
    batch = model.batch(random_codes(model, 2, 12))
    whole, trimmed = scores(model, batch), scores(small, batch)
    assert set(trimmed) == {"text", kept[0].name}
    all_close(trimmed, {name: whole[name] for name in trimmed})
    assert small.head.weight is not None
    assert small.temporal.layers[0].mlp.down.weight.data_ptr() == (
        model.temporal.layers[0].mlp.down.weight.data_ptr()
    )


def test_trimming_keeps_shared_weight_sets() -> None:
    model = build("own_delays")
    small = model.trimmed(2)
    assert small.config.depth.schedule == (0, 1)
    batch = model.batch(random_codes(model, 2, 12))
    whole, trimmed = scores(model, batch), scores(small, batch)
    all_close(trimmed, {name: whole[name] for name in trimmed})
    with pytest.raises(ValueError, match="at most 3: got 4"):
        model.trimmed(4)


@pytest.mark.parametrize("num_ticks", [3, 6, 13, 33])
def test_flops_agree_with_counted_ones(model: Moshi, num_ticks: int) -> None:
    batch = model.batch(random_codes(model, 4, num_ticks))
    trained = copy.deepcopy(model).train()
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


def test_state_bytes_agree_with_real_ones(model: Moshi) -> None:
    real = sum(tensor.nbytes for tensor in tensors(model.initial_state(1)))
    assert model.state_bytes_per_tick(50) * 50 == pytest.approx(real)


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        (moshi_7b(8), 7_687_729_152),
        (moshi_7b(16), 8_371_408_896),
    ],
)
def test_published_sizes(preset: MoshiConfig, count: int) -> None:
    with torch.device("meta"):
        model = Moshi(preset)
    assert sum(p.numel() for p in model.parameters()) == count


def test_tiny_preset_is_tiny_and_trains() -> None:
    model = Moshi(tiny())
    assert sum(p.numel() for p in model.parameters()) < 3_000_000
    model.loss(model.batch(random_codes(model, 1, 5))).total.backward()


def test_shard_units_are_the_layers_of_both_transformers(model: Moshi) -> None:
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(unit)] for unit in model.shard_units()] == [
        *(f"temporal.layers.{i}" for i in range(2)),
        *(f"depth.layers.{i}" for i in range(2)),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_predicted": 2}, r"one of \[1, 3, 4, 6\] codebooks: got 2"),
        ({"text_padding_id": TEXT_VOCAB}, f"0 to {TEXT_VOCAB - 1}: got {TEXT_VOCAB}"),
        ({"text_light_weight": 0.0}, "`text_light_weight` must be above 0"),
    ],
)
def test_config_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"audio": two_speakers(2), "num_predicted": 3}
    with pytest.raises(ValueError, match=message):
        config(**(fields | changes))


def test_audio_stream_needs_a_weight() -> None:
    with pytest.raises(ValueError, match="`loss_weight` of 'user' must be above 0"):
        AudioStream(name="user", role=Role.HEARD, depth=1, loss_weight=0.0)

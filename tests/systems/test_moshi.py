import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.loss_sums import add_losses
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.moshi import AudioStream, Moshi, MoshiConfig, moshi_7b, tiny, two_speakers
from counterpoint.train.loop import split_batch
from tests.systems.test_streaming_contract import random_chunks
from tests.systems.tiny_moshi import (
    CONFIGS,
    TEXT_VOCAB,
    build,
    config,
    frames_of,
    random_codes,
    sizes,
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


# Offline


def test_batch_delays_streams_behind_a_frame_of_initial_ids() -> None:
    model = build("own_delays")
    codes = {
        "text": torch.tensor([[1, 2, 3, 4, 5, 6]]),
        **{f"codebook_{i}": torch.tensor([[[6], [1], [2], [3], [4], [5]]]) for i in range(3)},
    }
    batch = model.lay_out(codes)
    assert batch.ticks["text"].tolist() == [[11, 1, 2, 3, 4, 5]]
    assert batch.targets["text"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch.ticks["codebook_0"][0, :, 0].tolist() == [7, 7, 6, 1, 2, 3]
    assert batch.targets["codebook_0"][0, :, 0].tolist() == [7, 6, 1, 2, 3, 4]
    assert batch.ticks["codebook_2"][0, :, 0].tolist() == [7, 7, 7, 7, 7, 6]
    assert batch.targets["codebook_2"][0, :, 0].tolist() == [7, 7, 7, 7, 6, 1]


def test_batch_is_causal_and_leaves_the_heard_streams_unpredicted() -> None:
    batch = build("agent_only").lay_out(random_codes(build("agent_only"), 2, 5))
    assert set(batch.targets) == {"text", "agent_semantic", "agent_acoustic"}
    assert set(batch.ticks) == {*batch.targets, "user_semantic", "user_acoustic"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_semantic": None}, "of all streams"),
        ({"user_semantic": torch.zeros(1, 5, dtype=torch.long)}, r"shape \(1, 5, 1\): got"),
        ({"text": torch.full((1, 5), TEXT_VOCAB)}, "-1 .unset. to 10: got 11 to 11"),
        ({"agent_semantic": torch.full((1, 5, 1), -2)}, "-1 .unset. to 6: got -2 to -2"),
        ({"user_acoustic": torch.full((1, 5, 2), 7)}, "-1 .unset. to 6: got 7 to 7"),
    ],
)
def test_batch_refuses_codes_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    model = build("agent_only")
    codes = random_codes(model, 1, 5) | change
    with pytest.raises(ValueError, match=message):
        model.lay_out({name: ids for name, ids in codes.items() if ids is not None})


def test_batch_refuses_ids_that_a_codebook_has_not() -> None:
    model = build("unlike_codebooks")
    codes = random_codes(model, 1, 5)
    codes["agent_acoustic"][0, 2, 1] = 2
    with pytest.raises(ValueError, match=r"'agent_acoustic' must be -1 \(unset\) to \[6, 1\]"):
        model.lay_out(codes)


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
    batch = model.lay_out(codes)
    text, audio, nats = expected_loss(model, batch)
    with torch.no_grad():
        loss = model.loss(batch)
    assert math.isclose(float(loss.terms["text"]), text, rel_tol=1e-5)
    assert math.isclose(float(loss.terms["audio"]), audio, rel_tol=1e-5)
    assert math.isclose(float(loss.total), text + audio, rel_tol=1e-5)
    assert math.isclose(float(loss.nats), nats, rel_tol=1e-5)
    frames = {
        name: ((ids >= 0) & (ids < schedule.initial_ids(model.layout)[name])).sum()
        / ids[0, 0].numel()
        for name, ids in batch.targets.items()
    }
    parts = [loss.terms[f"{name}_nats"] * count for name, count in frames.items()]
    close(torch.stack(parts).sum(), loss.nats)


def test_losses_of_parts_add_up_to_that_of_the_batch(model: Moshi) -> None:
    """The mean of the parts' totals is the batch's where the parts weigh the same, and only there.

    What adds up in any case is what `stream_losses` gives.
    """
    codes = random_codes(model, 4, 8)
    codes["text"][:] = torch.tensor([1, 3, 2, 1, 3, 3, 4, 5])  # as much padding in every row
    alike = model.lay_out(codes)
    codes["text"][:2] = 3
    codes[model.predicted[0].name][0, 3:] = -1
    unlike = model.lay_out(codes)

    @torch.no_grad()
    def totals(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of the batch, as the mean of its parts, and from the sums of its parts."""
        parts = split_batch(batch, 2)
        losses = [model.stream_losses(part, model(part)) for part in parts]
        sums = add_losses(losses)
        mean = torch.stack([model.loss(part).total for part in parts]).mean()
        return model.loss(batch).total, mean, model.combine(sums).total

    whole, mean, added = totals(alike)
    close(mean, whole)
    close(added, whole)
    whole, mean, added = totals(unlike)
    assert not torch.allclose(mean, whole, rtol=1e-4)
    close(added, whole)


def test_codebooks_of_fewer_ids_give_the_others_no_chance() -> None:
    model = build("unlike_codebooks")
    batch = model.lay_out(random_codes(model, 2, 12))
    for name, logits in scores(model, batch).items():
        absent = torch.arange(logits.shape[-1]) >= sizes(model)[name][..., None]
        assert (logits == -torch.inf).equal(absent.expand_as(logits))
        likelihood = logits.softmax(-1)
        close(likelihood.sum(-1), torch.ones(logits.shape[:-1]))
    trained = copy.deepcopy(model).train()
    loss = trained.loss(batch)
    loss.total.backward()
    assert loss.total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.parameters())

    def choose(stream: str, codebook: int, logits: Tensor) -> Tensor:
        return torch.multinomial(logits.softmax(-1), 1)[:, 0]

    with torch.no_grad():
        for small in (model, model.trimmed(1)):
            frame = small.write(torch.randn(400, 16), choose)
            for stream in small.predicted:
                said = frame[stream.name].amax(0) + 1
                assert said.tolist() == sizes(model)[stream.name].tolist()


def test_trimmed_model_keeps_the_sizes_of_its_codebooks() -> None:
    model = build("unlike_codebooks")
    assert model.trimmed(1).config.codebook_sizes == model.config.codebook_sizes == (4, 7, 2) * 2


# Prompts


@pytest.mark.parametrize("num_prompt", [0, 1, 3, 7, 8])
def test_prompt_is_read_and_carries_no_loss(model: Moshi, num_prompt: int) -> None:
    """Content of tick c comes to stand c + delay ticks behind the first target."""
    codes = random_codes(model, 2, 8)
    whole, batch = model.lay_out(codes), model.lay_out(codes, num_prompt=num_prompt)
    nats = torch.zeros(())
    found = scores(model, batch)
    assert set(found) == set(batch.targets) == set(whole.targets)
    for name, targets in batch.targets.items():
        assert torch.equal(batch.elements[name], whole.targets[name])
        for tick in range(8):
            content = tick - model.layout[name].delay_ticks
            if content < num_prompt:  # the prompt, or before any content
                begun = whole.targets[name][:, tick] < schedule.initial_ids(model.layout)[name]
                assert begun.all() == (content >= 0)
                assert (targets[:, tick][begun] == -1).all()
            else:
                assert torch.equal(targets[:, tick], whole.targets[name][:, tick])
                likelihood = found[name][:, tick].log_softmax(-1)
                nats -= likelihood.gather(-1, targets[:, tick, ..., None]).sum()
        assert torch.equal(found[name], scores(model, whole)[name])
    for name, ids in batch.ticks.items():
        assert torch.equal(ids, whole.ticks[name])
    with torch.no_grad():
        loss = model.loss(batch)
    torch.testing.assert_close(loss.nats, nats, rtol=1e-5, atol=1e-5)
    assert (loss.total == 0) == (num_prompt == 8)
    assert batch.size == 2 * (8 - num_prompt)
    assert batch.unit == "frame"


def test_semantic_codebooks_and_padding_have_the_weights_of_the_paper() -> None:
    for audio in (moshi_7b(16).audio, tiny().audio):
        weights = {stream.name: stream.loss_weight for stream in audio}
        assert weights["agent_semantic"] == weights["user_semantic"] == 100
        assert weights["agent_acoustic"] == weights["user_acoustic"] == 1
    assert (moshi_7b().text_light_ids, moshi_7b().text_light_weight) == ((3,), 0.5)


def test_unset_ids_embed_to_zero_whatever_the_tables_hold(model: Moshi) -> None:
    frames = {name: torch.full_like(ids, -1) for name, ids in frames_of(model, 1, 4).items()}
    assert not model.embed(frames).any()
    embedding = model.depth.first_embedding
    assert not embedding(torch.full((2, 1), -1)).any()


def test_a_share_of_what_is_heard_is_left_out_in_training_alone() -> None:
    model = build(replace(CONFIGS["agent_only"], heard_dropout=0.5))
    batch = model.lay_out(random_codes(model, 1, 400))
    with_gaps = model.train()._with_gaps(batch.ticks)
    for name, ids in batch.ticks.items():
        same = with_gaps[name] == ids
        if name.startswith("user"):
            assert 0.4 < same.float().mean() < 0.6
            assert (with_gaps[name][~same] == -1).all()
        else:
            assert same.all()
    assert model.eval()._with_gaps(batch.ticks) is batch.ticks


def test_text_only_batch_trains_the_text_beside_unset_audio(model: Moshi) -> None:
    text = torch.randint(0, TEXT_VOCAB, (2, 9))
    codes = {name: torch.full_like(ids, -1) for name, ids in random_codes(model, 2, 9).items()}
    alone, beside = model.lay_out({"text": text}), model.lay_out(codes | {"text": text})
    assert set(scores(model, alone)) == {"text"}
    close(scores(model, alone)["text"], scores(model, beside)["text"])
    with torch.no_grad():
        loss, other = model.loss(alone), model.loss(beside)
    close(loss.total, other.total)
    close(loss.total, loss.terms["text"])
    assert float(loss.terms["audio"]) == 0
    assert loss.nats > 0


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


def test_writing_element_by_element_is_offline(model: Moshi) -> None:
    batch = model.lay_out(random_codes(model, 2, 15))
    with torch.no_grad():
        z = stream(model, batch.ticks, random_chunks(15, 4))
        all_close(write_logits(model, z, batch.targets), scores(model, batch))


def test_rows_do_not_touch_when_they_write(model: Moshi) -> None:
    """Row 0 writes the same, bit for bit, beside whatever others."""

    @torch.no_grad()
    def written(z: Tensor) -> list[Tensor]:
        found = []

        def choose(stream: str, codebook: int, logits: Tensor) -> Tensor:
            found.append(logits[0])
            return logits.argmax(-1)

        return [*found, *(ids[0] for ids in model.write(z, choose).values())]

    z = torch.randn(3, model.config.temporal.width)
    other = torch.cat((z[:1], torch.randn(2, z.shape[1])))
    for ours, theirs in zip(written(z), written(other), strict=True):
        assert torch.equal(ours, theirs)


# Weights, sizes, costs


def test_trimmed_model_writes_the_same(model: Moshi) -> None:
    kept = model.predicted[:1]
    small = model.trimmed(sum(stream.depth for stream in kept))
    batch = model.lay_out(random_codes(model, 2, 12))
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
    batch = model.lay_out(random_codes(model, 2, 12))
    whole, trimmed = scores(model, batch), scores(small, batch)
    all_close(trimmed, {name: whole[name] for name in trimmed})
    with pytest.raises(ValueError, match="at most 3: got 4"):
        model.trimmed(4)


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
    model.loss(model.lay_out(random_codes(model, 1, 5))).total.backward()


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
        ({"heard_dropout": 1.0}, "`heard_dropout` must be >= 0 and < 1: got 1.0"),
        ({"audio_vocab_size": 3}, r"`codebook_sizes` must be 1 to `audio_vocab_size`, 3: got"),
    ],
)
def test_config_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    audio = tuple(replace(s, codebook_sizes=(4,) * s.depth) for s in two_speakers(2))
    fields: dict[str, Any] = {"audio": audio, "num_predicted": 3}
    with pytest.raises(ValueError, match=message):
        config(**(fields | changes))


def test_audio_stream_needs_a_weight() -> None:
    with pytest.raises(ValueError, match="`loss_weight` of 'user' must be above 0"):
        AudioStream(name="user", role=Role.HEARD, depth=1, loss_weight=0.0)

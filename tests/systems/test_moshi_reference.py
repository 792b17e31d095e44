"""Moshi against the reference implementation, Kyutai's package `moshi`."""

import pytest
import torch
from torch import Tensor

from counterpoint.formats.moshi.names import (
    halves_from_pairs,
    load_reference,
    pairs_from_halves,
    reference_state_dict,
)
from counterpoint.streams.spec import Ticks
from counterpoint.systems.moshi import Moshi, moshi_7b, two_speakers
from tests.systems.reference_moshi import reference_codes, reference_of, reference_shape
from tests.systems.tiny_moshi import CONFIGS, build, config, random_codes

# The layout of the published model, with one and with both speakers predicted.
PUBLISHED = {f"predicts_{count}": config(two_speakers(7), count) for count in (8, 16)}
# The reference cannot be built to predict one codebook only.
SHAPES = PUBLISHED | {name: CONFIGS[name] for name in CONFIGS if name != "one_codebook"}
NUM_TICKS = 19  # three windows


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Moshi:
    return build(SHAPES[request.param])


@torch.no_grad()
def agree(model: Moshi, codes: Ticks, trained: Ticks) -> None:
    """Logits of everything that carries loss are the reference's, and no other has loss there."""
    batch = model.lay_out(trained)
    ours, theirs = model(batch), reference_of(model)(reference_codes(codes))
    logits = {"text": theirs.text_logits.transpose(1, 2)[:, :, 0]}
    counted = {"text": theirs.text_mask.transpose(1, 2)[:, :, 0]}
    depths = [stream.depth for stream in model.predicted]
    for stream, piece, mask in zip(
        model.predicted, theirs.logits.split(depths, 1), theirs.mask.split(depths, 1), strict=True
    ):
        logits[stream.name] = piece.transpose(1, 2)
        counted[stream.name] = mask.transpose(1, 2)
    for name, value in ours.items():
        late = model.layout[name].delay_ticks
        undelayed, targets = value[:, late:], batch.targets[name][:, late:]
        mask = counted[name][:, : NUM_TICKS - late]
        assert not counted[name][:, NUM_TICKS - late :].any()
        assert torch.equal(mask, targets >= 0)
        assert (targets < value.shape[-1]).all()
        found, expected = undelayed[mask], logits[name][:, : NUM_TICKS - late][mask]
        there = found > -torch.inf  # the reference scores ids too that a codebook has not
        scale = float(found[there].abs().max())
        torch.testing.assert_close(found[there], expected[there], rtol=0, atol=1e-5 * scale)


def test_training_logits_match_the_reference(model: Moshi) -> None:
    codes = random_codes(model, 2, NUM_TICKS)
    agree(model, codes, codes)


def test_training_logits_match_the_reference_where_ids_are_unset(model: Moshi) -> None:
    codes = random_codes(model, 2, NUM_TICKS)
    for ids in codes.values():
        ids[torch.rand(ids.shape) < 0.3] = -1
    agree(model, codes, codes)


def test_text_alone_is_the_reference_with_audio_unset() -> None:
    model = build(PUBLISHED["predicts_8"])
    codes = {n: torch.full_like(ids, -1) for n, ids in random_codes(model, 2, NUM_TICKS).items()}
    codes["text"] = random_codes(model, 2, NUM_TICKS)["text"]
    agree(model, codes, {"text": codes["text"]})


def test_weights_go_to_the_reference_and_back(model: Moshi) -> None:
    again = Moshi(model.config)
    reference = {name: weight.clone() for name, weight in reference_state_dict(model).items()}
    load_reference(again, reference)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


@pytest.mark.parametrize(("count", "size"), [(8, 7_687_729_152), (16, 8_371_408_896)])
def test_published_model_has_the_names_and_shapes_of_the_reference(count: int, size: int) -> None:
    with torch.device("meta"):
        model = Moshi(moshi_7b(count))
    ours = reference_state_dict(model)
    theirs = reference_shape(moshi_7b(count), device="meta").state_dict()
    assert {name: w.shape for name, w in ours.items()} == {n: w.shape for n, w in theirs.items()}
    assert sum(weight.numel() for weight in ours.values()) == size


def test_trimmed_model_matches_the_trimmed_reference() -> None:
    """Sixteen predicted codebooks cut to eight are the reference built with eight."""
    model = build(PUBLISHED["predicts_16"]).trimmed(8)
    codes = random_codes(model, 2, NUM_TICKS)
    agree(model, codes, codes)


def broken(weights: dict[str, Tensor], change: str) -> dict[str, Tensor]:
    if change == "missing":
        del weights["emb.3.weight"]
    elif change == "unknown":
        weights["extra.weight"] = torch.zeros(1)
    else:
        weights["text_linear.weight"] = weights["text_linear.weight"][1:]
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing \(emb\.3\.weight\), 0 unknown"),
        ("unknown", r"0 missing \(\), 1 unknown \(extra\.weight\)"),
        ("shape", r"'text_linear.weight' must have the shape \(11, 16\): got \(10, 16\)"),
    ],
)
def test_other_weights_are_refused_and_nothing_is_written(change: str, message: str) -> None:
    model, other = build("both_speakers"), build("both_speakers")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_reference(model, broken(reference_state_dict(other), change))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_reordered_rows_are_a_permutation_within_heads() -> None:
    rows = torch.arange(3 * 8.0)[:, None]  # two heads of four features
    turned = halves_from_pairs(rows, 2)
    assert turned[:8, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(turned[16:], rows[16:])
    assert torch.equal(pairs_from_halves(turned, 2), rows)

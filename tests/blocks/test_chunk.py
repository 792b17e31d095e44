"""The dynamic chunker: closed forms, the published code's numbers, and what it may not do."""

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.chunk import (
    Chunks,
    Router,
    lay_chunks,
    most_chunks,
    ratio_loss,
    ratio_penalty,
    smooth,
    straight_through,
)
from tests.blocks.hnet_reference import near_identity, numbers, wave

LENGTHS = torch.tensor([12, 9])


def published() -> tuple[Tensor, Chunks]:
    """The steps of the reference, and the chunks that we find in them."""
    x = wave(2, 12, 4)
    router = Router(4)
    with torch.no_grad():
        router.query.weight.copy_(near_identity(4, 2.0))
        router.key.weight.copy_(near_identity(4, 3.0))
        probability = router(x, torch.zeros(2, 4))
    return x, lay_chunks(probability, one_document(2, 12), lengths=LENGTHS)


def one_document(rows: int, steps: int) -> Tensor:
    return torch.zeros(rows, steps, dtype=torch.long)


def same(ours: Tensor, name: str) -> None:
    expected = torch.tensor(numbers()[name]).view_as(ours)
    torch.testing.assert_close(ours.to(expected.dtype), expected, rtol=0, atol=2e-6)


def test_boundaries_are_those_of_the_published_code() -> None:
    _, chunks = published()
    same(chunks.probability, "probability")
    same(chunks.begins, "mask")


def test_selected_chunks_are_those_of_the_published_code() -> None:
    x, chunks = published()
    real = torch.arange(12) < chunks.number[:, None]
    same(chunks.select(x)[real], "chunks")


def test_smoothing_and_spreading_are_those_of_the_published_code() -> None:
    """It clamps the weights to 1 - 1e-4; with weights clamped like them all numbers are equal."""
    x, chunks = published()
    clamped = chunks._replace(probability=chunks.probability.clamp(1e-4, 1 - 1e-4))
    outputs = torch.tanh(2 * chunks.select(x))
    spread = clamped.spread(clamped.smooth(outputs, torch.zeros(2, 4)))
    expected = torch.tensor(numbers()["spread"]).view(2, 12, 4)
    real = torch.arange(12) < LENGTHS[:, None]
    torch.testing.assert_close(spread[real], expected[real], rtol=0, atol=2e-6)
    plain = chunks.spread(chunks.smooth(outputs, torch.zeros(2, 4)))
    torch.testing.assert_close(plain[real], expected[real], rtol=0, atol=2e-4)


@pytest.mark.parametrize("ratio", [2.5, 6.0])
def test_ratio_loss_is_that_of_the_published_code(ratio: float) -> None:
    _, chunks = published()
    same(ratio_loss(chunks, LENGTHS, ratio)[0], f"ratio_{ratio}")


def test_neighbours_that_are_alike_begin_no_chunk() -> None:
    """With maps that are the identity: p = (1 - cos) / 2, whatever the lengths of the vectors."""
    x = torch.tensor([[[2.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, -4.0], [-1.0, -1.0]]])
    found = Router(2)(x, torch.tensor([[-5.0, 0.0]]))
    root = 0.5**0.5
    expected = torch.tensor([[1.0, 0.0, 0.5, 1.0, (1 - root) / 2]])
    torch.testing.assert_close(found, expected)


def test_rounding_does_not_move_boundaries_in_mixed_precision() -> None:
    x = wave(2, 12, 4)
    router = Router(4)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = router(x, x[:, 0])
    assert torch.equal(mixed, router(x, x[:, 0]))


# ----------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("ratio", [1.5, 3.0, 6.0])
def test_ratio_penalty_is_one_at_the_ratio_and_more_where_share_and_mean_agree(
    ratio: float,
) -> None:
    share = torch.linspace(0, 1, 201)
    penalty = ratio_penalty(share, share, ratio)
    assert abs(float(share[penalty.argmin()]) - 1 / ratio) <= 0.005
    target = torch.tensor(1 / ratio)
    torch.testing.assert_close(ratio_penalty(target, target, ratio), torch.tensor(1.0))
    assert (penalty >= 1 - 1e-6).all()


def test_ratio_penalty_is_less_than_one_where_share_and_mean_differ() -> None:
    third = torch.tensor(1 / 3)
    torch.testing.assert_close(ratio_penalty(third / 2, 2 * third, 3.0), torch.tensor(0.75))


def test_ratio_loss_draws_the_share_to_its_minimum() -> None:
    """Descent on free probabilities ends with one step in three beginning a chunk."""
    torch.manual_seed(0)
    free = torch.randn(1, 300, requires_grad=True)
    optimiser = torch.optim.SGD([free], lr=20.0)
    share = torch.ones(1)
    for _ in range(300):
        chunks = lay_chunks(free.sigmoid(), one_document(1, 300))
        loss, share = ratio_loss(chunks, None, 3.0)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    assert abs(float(share) - 1 / 3) < 0.02


def test_smoothing_is_the_recurrence() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 100, 3), 0.5 + 0.5 * torch.rand(2, 100)
    weight[0, ::7] = 0.5
    weight[1, 40] = 1.0
    expected, z = [], torch.zeros(2, 3)
    for t in range(100):
        z = weight[:, t, None] * x[:, t] + (1 - weight[:, t, None]) * z
        expected.append(z)
    torch.testing.assert_close(smooth(x, weight), torch.stack(expected, 1), rtol=0, atol=1e-6)


def test_straight_through_is_one_with_the_gradient_of_what_it_stands_for() -> None:
    x = torch.rand(5, requires_grad=True)
    ones = straight_through(x)
    assert torch.equal(ones, torch.ones(5))
    (ones * torch.arange(5.0)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.arange(5.0))


# ----------------------------------------------------------------------- where chunks begin


def test_documents_begin_with_a_chunk_and_read_only_their_own() -> None:
    probability = torch.full((1, 9), 0.1)
    probability[0, 2] = 0.9
    first = torch.tensor([[0, 0, 0, 0, 4, 4, 4, 4, 4]])
    chunks = lay_chunks(probability, first)
    assert chunks.begins.nonzero()[:, 1].tolist() == [0, 2, 4]
    assert chunks.read.tolist() == [[1, 1, 2, 2, 3, 3, 3, 3, 3]]
    assert chunks.first[0, :3].tolist() == [0, 0, 2]
    torch.testing.assert_close(chunks.confidence[0, :4], torch.tensor([1, 0.9, 0.9, 0.9]))


def granted_one_by_one(wanted: list[bool], first: list[int], share: float) -> list[bool]:
    """The rule of `lay_chunks` as it is written there."""
    granted, count = [], 0
    for step, (wants, start) in enumerate(zip(wanted, first, strict=True)):
        if step == start:
            count = 0
        allowed = max(1, int((step - start + 1) * share + 1e-9))
        granted.append((wants or step == start) and count < allowed)
        count += granted[-1]
    return granted


@pytest.mark.parametrize("share", [0.2, 1 / 3, 0.5, 0.7])
def test_a_document_never_has_more_chunks_than_its_share(share: float) -> None:
    torch.manual_seed(0)
    for likely in (0.3, 0.9):
        probability = (torch.rand(1, 60) < likely) * 0.8 + 0.1
        first = torch.tensor([[0] * 21 + [21] * 5 + [26] * 34])
        chunks = lay_chunks(probability, first, share=share)
        wanted = (probability[0] >= 0.5).tolist()
        assert chunks.begins[0].tolist() == granted_one_by_one(wanted, first[0].tolist(), share)
        assert chunks.at.shape[1] == most_chunks(60, share) == int(60 * share + 1e-9)
        assert (
            chunks.at[0, : int(chunks.number)].tolist() == chunks.begins[0].nonzero()[:, 0].tolist()
        )


def test_a_document_that_finds_no_room_reads_nothing() -> None:
    """Six documents of one step, and room for three chunks."""
    chunks = lay_chunks(torch.ones(1, 6), torch.arange(6)[None], share=0.5)
    assert chunks.read.tolist() == [[1, 2, 3, 0, 0, 0]]
    smoothed = chunks.smooth(torch.ones(1, 3, 2), torch.zeros(1, 2))
    assert chunks.spread(smoothed)[0, :, 0].tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_chunks_go_on_where_a_session_stopped(share: float) -> None:
    torch.manual_seed(0)
    probability = torch.rand(3, 50)
    whole = lay_chunks(probability, one_document(3, 50), share=share)
    position = torch.zeros(3, dtype=torch.long)
    begun = torch.zeros(3, dtype=torch.long)
    found = torch.zeros(3, 50, dtype=torch.bool)
    while (position < 50).any():
        lengths = torch.minimum(torch.randint(0, 6, (3,)), 50 - position)
        piece = torch.rand(3, 5)
        for row, (at, length) in enumerate(zip(position, lengths, strict=True)):
            piece[row, :length] = probability[row, at : at + length]
        first = -position[:, None].expand(-1, 5)
        chunks = lay_chunks(piece, first, lengths=lengths, begun=begun, share=share)
        for row, (at, length) in enumerate(zip(position, lengths, strict=True)):
            found[row, at : at + length] = chunks.begins[row, :length]
        assert torch.equal(chunks.first[:, 0], -begun)
        begun = begun + chunks.number
        position = position + lengths
    assert torch.equal(found, whole.begins)
    assert torch.equal(begun, whole.number)

"""The whole as text: predicted before a block is written, read by it, forced, edited, missing."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.blocks.loss_sums import cross_entropy
from counterpoint.blocks.notes import NotesConfig, held_notes
from counterpoint.data.tasks.part_whole import TASKS
from counterpoint.data.tasks.source import PreparedTask, TaskData
from counterpoint.errors import UserError
from counterpoint.evaluate.tasks import answer
from counterpoint.runtime.generate import generate
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Frame
from counterpoint.runtime.sessions import Sessions
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.two_stream import TwoStream
from tests.systems.contract_models import batch_of, random_ticks
from tests.systems.tiny_models import VOCAB, randomised, tower, two

TEXT = "whole_text"
BLOCK = 4
GREEDY = Sampling(temperature=0.0)
FORCED = [5, 2]


def build(lag: int = 0, text: NotesConfig | None = None, **changes: Any) -> TwoStream:
    own = NotesConfig(depth=2, vocab_size=VOCAB) if text is None else text
    model = randomised(TwoStream(two("mean", lag, text=own, **changes)))
    assert isinstance(model, TwoStream)
    return model


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def prompted(model: TwoStream, prompt: Tensor) -> Sessions:
    sessions = Sessions(model, 1)
    sessions.start(0, GREEDY, prompt={"part": prompt})
    return sessions


def laid_out(model: TwoStream, prompt: Tensor, frames: list[Frame]) -> Batch:
    """A prompt and what a session said behind it, as a row."""
    part = torch.cat((prompt[0], *(frame["part"] for frame in frames)))[None]
    steps = [frame[TEXT] for frame in frames if TEXT in frame]
    unset = torch.full((part.shape[1] // BLOCK - len(steps), 2), UNSET_ID)  # those of the prompt
    text = torch.cat((unset, *(step[None] for step in steps)))[None]
    return model.lay_out({"part": part, TEXT: text})


@torch.no_grad()
def test_sessions_write_what_whole_rows_score() -> None:
    """Greedy, so that every id written is the likeliest of a pass over the whole row."""
    torch.manual_seed(1)
    model, prompt = build(), torch.randint(0, VOCAB, (1, 6))
    sessions = prompted(model, prompt)
    frames = [sessions.step()[0] for _ in range(16)]
    # The text of a block comes with the frame of its last tick, when the next one begins.
    assert [TEXT in frame for frame in frames] == [tick % BLOCK == 3 for tick in range(6, 22)]
    batch = laid_out(model, prompt, frames)
    scores = model(batch)
    for name, targets in batch.targets.items():
        new = targets[:, 6:]
        likeliest = scores[name][:, 6:].argmax(-1)
        assert torch.equal(likeliest[new != UNSET_ID], new[new != UNSET_ID])
        assert (new != UNSET_ID).any()


def test_part_is_generated_beside_its_text() -> None:
    torch.manual_seed(1)
    model, prompt = build(), torch.randint(0, VOCAB, (1, 6))
    sessions = prompted(model, prompt)
    expected = [int(sessions.step()[0]["part"]) for _ in range(12)]
    ids = list(generate(model, prompt[0].tolist(), GREEDY, 12, end_id=VOCAB))
    assert ids == expected
    ends = expected.index(expected[4])
    assert (
        list(generate(model, prompt[0].tolist(), GREEDY, 12, end_id=expected[4]))
        == (expected[: ends + 1])
    )
    with pytest.raises(UserError, match="under another whole"):
        next(generate(model, [1], GREEDY, whole_from=[1]))
    with pytest.raises(UserError, match="window of .* got 99"):
        next(generate(model, [1] * 99, GREEDY))


@torch.no_grad()
def test_text_can_be_forced_while_the_part_is_written() -> None:
    torch.manual_seed(2)
    model, prompt = build(), torch.randint(0, VOCAB, (1, 6))
    free, told = prompted(model, prompt), prompted(model, prompt)
    first, forced = [], []
    for step in range(30):
        first.append(free.step()[0])
        due = (6 + step) % BLOCK == 2  # what is given is of the next tick, the last one of a block
        forced.append(told.step({0: {TEXT: FORCED} if due else {}})[0])
    texts = [frame[TEXT].tolist() for frame in forced if TEXT in frame]
    assert texts[1:] == [FORCED] * len(texts[1:])
    assert [f["part"].tolist() for f in first] != [f["part"].tolist() for f in forced]
    batch = laid_out(model, prompt, forced)
    likeliest = model(batch)["part"][:, 6:].argmax(-1)
    assert torch.equal(likeliest, batch.targets["part"][:, 6:])


@torch.no_grad()
def test_told_text_holds_until_the_next() -> None:
    torch.manual_seed(3)
    model = build(1)
    ticks, notes = random_ticks(model, 2, 25), torch.randint(0, VOCAB, (2, 2))
    _, state = model.read({name: ids[:, :6] for name, ids in ticks.items()}, model.initial_state(2))
    model.tell(state, notes)
    hidden, _ = model.read({name: ids[:, 6:] for name, ids in ticks.items()}, state)
    edited = ticks[TEXT].clone()
    edited[:, 6] = notes
    scores = {}
    for name, text in (("own", ticks[TEXT]), ("edited", edited)):
        scores[name] = model(batch_of(model, {**ticks, TEXT: text}))["part"][:, 6:24]
    # Scores before a text is followed: those behind the last tick of a block are of its plan.
    plain = torch.tensor([tick % BLOCK != 3 for tick in range(6, 24)])
    same(model.head(hidden)[:, :18][:, plain], scores["edited"][:, plain])
    assert not torch.allclose(scores["own"], scores["edited"], atol=1e-3)


def test_a_note_ends_with_its_document() -> None:
    """Also one behind the last step of the document before."""
    notes = torch.tensor([UNSET_ID, 5, UNSET_ID, 7])[None, :, None]
    nothing = torch.full((1, 1), UNSET_ID)
    held = held_notes(notes, nothing, torch.tensor([[0, 0, 2, 2]]))
    assert held[0, 1:, 0].tolist() == [UNSET_ID, 5, UNSET_ID, 7]
    held = held_notes(notes, nothing, torch.tensor([[0, 0, 0, 0]]))
    assert held[0, 1:, 0].tolist() == [UNSET_ID, 5, 5, 7]


@torch.no_grad()
def test_swap_takes_the_text_along() -> None:
    model = build()
    ticks, others = random_ticks(model, 1, 9), random_ticks(model, 1, 9)
    _, mine = model.read(ticks, model.initial_state(1))
    _, donor = model.read(others, model.initial_state(1))
    swapped = model.swap(mine, donor)
    assert torch.equal(swapped.text[0] - 1, others[TEXT][:, 8])
    model.tell(donor, torch.full((1, 2), UNSET_ID))
    assert torch.equal(swapped.text[0] - 1, others[TEXT][:, 8])


def test_text_moves_all_later_ticks_of_its_document_only() -> None:
    model = build(part=tower(18, 2, 3, 1), num_links=0, conv_taps=1)  # nothing else carries it on
    ticks = random_ticks(model, 1, 24)
    starts = torch.tensor([0] * 12 + [12] * 12)[None]
    ticks[TEXT][:, 12] = UNSET_ID
    batch = batch_of(model, ticks, starts)
    other = ticks[TEXT].clone()
    other[:, 8] = (other[:, 8] + 1) % VOCAB
    with torch.no_grad():
        moved = model(batch)["part"] != model(replace(batch, ticks={**ticks, TEXT: other}))["part"]
    assert moved.any(-1)[0].nonzero().flatten().tolist() == [8, 9, 10, 11]


@torch.no_grad()
def test_losses_are_those_of_the_due_ticks() -> None:
    torch.manual_seed(4)
    text = NotesConfig(depth=2, vocab_size=VOCAB, loss_weight=0.5)
    model = build(text=text, predict_weight=0.0, reconstruct_weight=0.0)
    batch = batch_of(model, random_ticks(model, 3, 22))
    loss = model.loss(batch)
    nats = {n: float(cross_entropy(s, batch.targets[n])) for n, s in model(batch).items()}
    assert int((batch.targets[TEXT] != UNSET_ID).sum()) == 3 * 5 * 2
    assert math.isclose(float(loss.nats), sum(nats.values()), rel_tol=1e-5)
    expected = (nats["part"] + 0.5 * nats[TEXT]) / (3 * 22)
    assert math.isclose(float(loss.total), expected, rel_tol=1e-5)


@torch.no_grad()
def test_batches_without_text_have_no_loss_of_it() -> None:
    model = build()
    ids = random_ticks(model, 2, 22)["part"]
    alone = model.lay_out({"part": ids})
    assert set(model(alone)) == set(alone.targets) == {"part"}
    assert set(model.losses(alone)) == {"part", "predict", "reconstruct"}
    bare = replace(alone, ticks={"part": alone.ticks["part"]})  # as texts are laid out
    same(model(bare)["part"], model(alone)["part"])
    assert torch.equal(model.loss(bare).total, model.loss(alone).total)


@torch.no_grad()
def test_rows_without_the_whole_are_not_told_its_text() -> None:
    model = build(whole_dropout=1.0).train()
    batch = batch_of(model, random_ticks(model, 2, 22))
    other = batch_of(model, {**batch.ticks, TEXT: random_ticks(model, 2, 22)[TEXT]})
    assert torch.equal(model.losses(batch)["part"].nats, model.losses(other)["part"].nats)
    model.eval()
    assert not torch.equal(model.losses(batch)["part"].nats, model.losses(other)["part"].nats)


def test_items_of_tasks_train_it_and_are_answered() -> None:
    task = TASKS["logbook"]
    data = TaskData(task=task)
    items = [task.item(0, number) for number in range(2)]
    longest = max(len(label.text) for item in items for label in item.whole)
    model = build(
        text=NotesConfig(depth=longest, padding_id=0), vocab_size=258, block_ticks=8
    ).train()
    loss = model.loss(PreparedTask(data, model.layout).batch(items))
    assert loss.terms[f"{TEXT}_nats"] > 0
    loss.total.backward()
    for true_whole in (False, True):
        replies = list(answer(model, items, true_whole=true_whole))
        assert [len(one) for one in replies] == [len(item.answers) for item in items]


def test_blocks_of_words_are_refused() -> None:
    with pytest.raises(UserError, match="must not end early"):
        build(boundary_ids=(2,))


@pytest.mark.parametrize("changes", [{"depth": 0}, {"depth": 1, "padding_id": 258}])
def test_notes_that_cannot_be_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="otes"):
        NotesConfig(**changes)


def test_only_a_written_whole_can_be_told() -> None:
    model = TwoStream(two("mean", 0))
    with pytest.raises(UserError, match="`text`"):
        model.tell(model.initial_state(1), torch.zeros(1, 2, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_shuffled_text_guides_whole_rows_losses_and_sessions_alike(num_rows: int) -> None:
    torch.manual_seed(2)
    model = build(whole_control="shuffled")
    batch = model.lay_out(
        {
            "part": torch.randint(0, VOCAB, (num_rows, 21)),
            TEXT: torch.randint(0, VOCAB, (num_rows, 5, 2)),
        }
    )
    scores = model(batch)
    for name, sums in model.losses(batch).items():
        if name in batch.targets:
            same(sums.nats, cross_entropy(scores[name], batch.targets[name]))
    hidden, state = model.read(batch.ticks, model.initial_state(num_rows))
    for tick in range(20):
        same(told_part(model, hidden[:, tick], state, batch, tick), scores["part"][:, tick])


def told_part(model: TwoStream, hidden: Tensor, state: Any, batch: Batch, tick: int) -> Tensor:
    """Scores of the part after a tick, if the text is that of the batch."""
    found: dict[str, Tensor] = {}

    def choose(stream: str, place: int, scores: Tensor) -> Tensor:
        found[stream] = scores
        written = batch.targets[stream][:, tick]
        return written[:, place] if stream == TEXT else written

    model.write(hidden, choose, state)
    return found["part"]

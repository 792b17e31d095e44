from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from counterpoint.data.loader import Loader
from counterpoint.data.mixture import TEXT_KIND, Evenly, Mixture, WholeBatches
from counterpoint.data.speech.text_rows import END_ID, TextBatches, TextRows, prepare_text
from counterpoint.data.text.corpus import Folder
from counterpoint.data.text.packing import PackedRows
from counterpoint.data.text.shards import ShardWriter, TokenShards
from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.streams import schedule
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.moshi import Moshi, tiny
from tests.systems.tiny_moshi import build, config
from tests.systems.tiny_moshi import codebooks as codebooks_of

TEXTS = ("In the beginning", "God", "created the heaven and the earth")


@pytest.fixture(scope="module")
def model() -> Moshi:
    return Moshi(tiny())


def text_rows(
    folder: Path, model: Moshi, row_ticks: int, texts: tuple[str, ...] = TEXTS
) -> TextRows:
    with ShardWriter(folder / "shards", ByteTokenizer()) as writer:
        for text in texts:
            writer.add(text)
    return TextRows(PackedRows(TokenShards(folder / "shards"), row_ticks, 1), model)


class Numbered:
    """Remembers which batches it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def batch(self, step: int) -> Batch:
        self.asked.append(step)
        ids = torch.tensor([[step]])
        return Batch(ticks={"text": ids}, targets={}, document_start=ids, size=1)


def spread(speech: Numbered, text: Numbered, share: float) -> Mixture:
    members = {"text": WholeBatches(text, TEXT_KIND), "speech": WholeBatches(speech)}
    return Mixture(members, Evenly({"text": share, "speech": 1 - share}))


@pytest.mark.parametrize(
    ("share", "text_steps"),
    [(0.5, [1, 3, 5, 7, 9, 11]), (0.1, [9]), (0.3, [3, 6, 9]), (0.9, [*range(1, 10), 11])],
)
def test_text_is_evenly_spread_and_no_batch_is_left_out(
    share: float, text_steps: list[int]
) -> None:
    speech, text = Numbered(), Numbered()
    mixture = spread(speech, text, share)
    kinds = [mixture.batch(step).kind for step in range(12)]
    assert [step for step, kind in enumerate(kinds) if kind == TEXT_KIND] == text_steps
    assert speech.asked == list(range(12 - len(text_steps)))
    assert text.asked == list(range(len(text_steps)))


def test_any_step_can_come_first() -> None:
    in_order = spread(Numbered(), Numbered(), 0.3)
    expected = [(b.kind, int(b.ticks["text"])) for b in map(in_order.batch, range(50))]
    for step in (49, 0, 23, 6, 23):
        batch = spread(Numbered(), Numbered(), 0.3).batch(step)
        assert (batch.kind, int(batch.ticks["text"])) == expected[step]


def test_share_is_kept_over_many_steps() -> None:
    for share in (1 / 3, 0.1, 0.07, 0.999):
        mixture = spread(Numbered(), Numbered(), share)
        number = sum(mixture.batch(step).kind == TEXT_KIND for step in range(3000))
        assert abs(number - 3000 * share) < 1


@pytest.mark.parametrize("num_ids", [256, 257, 258, 300])
@pytest.mark.parametrize("delays", [(0, 0), (0, 1), (0, 3)])
def test_a_document_is_read_as_text_alone_always_is(
    tmp_path: Path, delays: tuple[int, ...], num_ids: int
) -> None:
    """In a row of its own it gives the batch of `Moshi.batch`, whatever the model's initial id."""
    model = build(config(codebooks_of(delays), len(delays), text_vocab_size=num_ids))
    text = "heaven"
    row = text_rows(tmp_path, model, len(text) + 1, (text,)).rows(np.array([0]))
    expected = model.lay_out({"text": torch.tensor([[*text.encode(), END_ID]])})
    for part in ("ticks", "targets", "elements"):
        found, other = getattr(row, part), getattr(expected, part)
        assert found.keys() == other.keys()
        for name in found:
            assert torch.equal(found[name][:, : len(text) + 1], other[name]), (part, name)
    assert torch.equal(row.document_start, expected.document_start)
    assert (row.size, row.unit) == (expected.size, expected.unit)


def test_documents_follow_each_other_without_padding(tmp_path: Path, model: Moshi) -> None:
    rows = text_rows(tmp_path, model, 24)
    batch = rows.rows(np.arange(len(rows)))
    begin = schedule.initial_ids(model.layout)["text"]
    joined = [i for text in TEXTS for i in (begin, *text.encode(), END_ID)]
    ticks = batch.ticks["text"].flatten().tolist()
    assert ticks[: len(joined)] == joined
    assert set(ticks[len(joined) :]) <= {END_ID}
    targets = batch.targets["text"].flatten().tolist()
    following = [*joined[1:], UNSET_ID]
    following = [UNSET_ID if i == begin else i for i in following]
    # The last id of a row has its target in it too: the first of the next row.
    assert targets[: len(joined)] == following
    assert batch.size == sum(i != UNSET_ID for i in targets)
    assert batch.document_start[0].tolist() == [0] * 18 + [18] * 5 + [23]
    assert batch.document_start[1].tolist() == [0] * 24  # it goes on
    assert (batch.ticks["agent_semantic"][0, :, 0] >= 0).nonzero().flatten().tolist() == [0, 18, 23]
    assert (batch.ticks["agent_semantic"][1] == UNSET_ID).all()
    assert set(batch.targets) == {"text"}


def test_text_batches_train_the_text_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Moshi(tiny())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    rows = text_rows(tmp_path, model, 24)
    loss = model.loss(rows.rows(np.array([0, 1])))
    loss.total.backward()
    assert float(loss.terms["audio"]) == 0
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"head.weight", "text_embedding.table.weight", "norm.weight"} <= trained
    assert not any(name.startswith("depth.") for name in trained)


def test_run_reads_its_corpus_by_the_tokeniser_of_its_speech(tmp_path: Path, model: Moshi) -> None:
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    settings: dict[str, Any] = {"row_ticks": 16, "cache_folder": str(tmp_path / "cache")}
    batches = TextBatches(source=Folder(path=str(tmp_path / "texts")), **settings)
    rows = prepare_text(batches, "bytes", model)
    parts = [Loader(rows, 2, seed=0, rank=rank, world_size=2).batch(3) for rank in (0, 1)]
    whole = Loader(rows, 2, seed=0).batch(3)
    assert torch.equal(torch.cat([part.ticks["text"] for part in parts]), whole.ticks["text"])
    held = {i for row in rows.rows(np.arange(len(rows))).ticks["text"].tolist() for i in row}
    assert held <= {256, END_ID, *b"".join(t.encode() for t in TEXTS)}


def test_text_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="`text_vocab_size` must be at least the 256 ids .* got 11"
    ):
        text_rows(tmp_path, build("both_speakers"), 8)
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"`share` must be between 0 and 1: got {share}"):
            TextBatches(share=share)

"""Spoken maths in the tokens of a language model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from counterpoint.data.tasks.spoken_maths.bank import BankConfig
from counterpoint.data.tasks.spoken_maths.hearing import spoken_rounds
from counterpoint.data.tasks.spoken_maths.problems import SpokenMaths
from counterpoint.data.tasks.spoken_maths.source import PreparedMaths, SpokenMathsData
from counterpoint.data.tasks.spoken_maths.words import TokenWords, Words
from counterpoint.data.text.published import ALONE, tokenizer_of, write_tokenizer
from counterpoint.data.text.tokenizer import load_tokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.spoken_maths import (
    ProgramThinker,
    clock_of,
    listen,
    think_in_chunks,
)
from counterpoint.runtime.clocked import ClockConfig, Proposal
from counterpoint.runtime.thinker import Vocabulary
from counterpoint.streams.rounds import Marks
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems.shanks import Shanks, ShanksConfig
from tests.formats.test_llama import llama, saved
from tests.systems import tiny_models

MARKS = Marks()
TASK = SpokenMaths(tokenizer="bytes")
DATA = SpokenMathsData(task=TASK, row_ticks=2048, num_held_out=2)
NUM_BYTES = load_tokenizer("bytes").vocab_size


def shanks_of(num_ids: int) -> Shanks:
    return Shanks(ShanksConfig(tower=tiny_models.tower(8, 1, 1, 2048), vocab_size=num_ids))


def test_words_have_a_blank_before_them_and_digits_none() -> None:
    words = TokenWords(load_tokenizer("bytes"))
    assert isinstance(words, Vocabulary)
    assert isinstance(Words(), Vocabulary)
    ids = words.ids(["one", "7", "4", "+", "3", "ok", MARKS.interrupt, MARKS.close, "wait"])
    text = " one74 +3 ok[INTERRUPT]</think> wait"
    assert words.decode(ids) == text
    assert np.array_equal(words.encode(text), ids)
    assert len(ids) == len(text) - len(MARKS.interrupt) - len(MARKS.close) + 2
    own = [MARKS.part, MARKS.last, MARKS.close, MARKS.interrupt, MARKS.stop]
    assert words.ids(own).tolist() == list(range(NUM_BYTES, NUM_BYTES + 5))
    assert len(words) == NUM_BYTES + 5
    assert words.encode("").tolist() == []
    assert words.decode(np.array([*words.ids(["one"]), NUM_BYTES + 5, NUM_BYTES + 1])) == (
        f" one{MARKS.last}"  # a model may have room for more ids than there are marks
    )
    assert words.decode(words.encode("")) == ""


def test_rows_hold_the_words_in_tokens() -> None:
    system = shanks_of(len(DATA.words))
    batch = DATA.prepare(system).batches(2, 0).batch(0)
    targets = batch.targets["thought"]
    following = batch.ticks["thought"][:, 1:]
    same = batch.document_start[:, 1:] == batch.document_start[:, :-1]
    trained = (targets[:, :-1] != UNSET_ID) & same
    assert torch.equal(following[trained], targets[:, :-1][trained])
    row = PreparedMaths(DATA, system.layout).batch(DATA.heard(0, held_out=True))
    heard = row.ticks["heard"][0]
    said = DATA.words.decode(heard[heard != UNSET_ID].numpy()).split()
    whole = DATA.heard(0, held_out=True).problem.words
    assert said == whole[: len(said)]
    assert len(said) > 20


class Following(ProgramThinker):
    """Writes what the program writes, token by token, and notes all ids."""

    def __init__(self, rounds: Any, words: TokenWords) -> None:
        super().__init__(rounds, MARKS)
        self.words = words
        self.ids: list[int] = []
        self._left: list[int] = []

    def hear(self, content: Any) -> None:
        self.ids += self.words.encode(content).tolist()
        super().hear(content)
        self._left = self.words.ids(self._next).tolist()

    def read(self, text: str) -> None:
        ids = self.words.encode(text).tolist()
        self.ids += ids
        if ids == self._left[:1]:
            self._left.pop(0)

    def propose(self) -> Proposal:
        return Proposal(self.words.decode(np.array(self._left[:1])))


@pytest.mark.parametrize("number", range(6))
def test_a_session_reads_the_ids_on_which_a_model_was_trained(number: int) -> None:
    heard = DATA.heard(number)
    words = DATA.words
    assert isinstance(words, TokenWords)
    row = PreparedMaths(DATA, shanks_of(len(words)).layout).batch(heard)
    thought = row.ticks["thought"][0]
    expected = torch.where(thought == UNSET_ID, row.ticks["heard"][0], thought).tolist()
    rounds = spoken_rounds(heard, DATA.chunk_s, thinks=True, marks=MARKS)
    thinker = Following(rounds, words)
    # A byte is a token here, so there are more of them a second than of words.
    clock = ClockConfig(chunk_s=2.0, tokens_per_s=500.0, answer_tokens=10 * DATA.answer_tokens)
    timeline = think_in_chunks(thinker, heard, clock)
    assert thinker.ids[: len(expected)] == expected
    assert thinker.ids[len(expected) :] == words.ids([MARKS.stop]).tolist()
    wrong = heard.problem.fault is not None
    answer = timeline.where(kind="answer").events[0].text.split()
    assert answer == (heard.problem.correction if wrong else heard.problem.agreement)


def test_a_model_of_tokens_listens_against_the_clock() -> None:
    model = shanks_of(len(DATA.words)).eval()
    tiny_models.randomised(model)
    attempt = listen(model, DATA, DATA.heard(0))
    thoughts = attempt.timeline.where(kind="thought").events
    assert thoughts
    assert all(one.payload["tokens"] <= clock_of(DATA).budget for one in thoughts)


def test_a_published_model_brings_its_tokeniser(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    saved(tmp_path, llama(vocab_size=300, bos_token_id=1, eos_token_id=2))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own = Tokenizer(models.BPE({sign: number for number, sign in enumerate(sorted(alphabet))}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    own.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizer_of(str(tmp_path))
    assert tokenizer.vocab_size == 300  # of the model, which has more than its tokeniser
    data = SpokenMathsData(task=SpokenMaths(tokenizer=str(tmp_path)))
    assert data.words.ids([MARKS.part, MARKS.stop]).tolist() == [300, 304]
    assert data.find_files() == {"tokenizer": tmp_path}
    assert data.file_names() == {"tokenizer": str(tmp_path)}
    assert data.with_files({"tokenizer": "bytes"}).task == TASK
    alone = tmp_path / f"alone{ALONE}"
    write_tokenizer(tmp_path, alone)
    kept = tokenizer_of(str(alone))
    assert (kept.identity, kept.vocab_size) == (tokenizer.identity, 300)
    assert (kept.start_id, kept.end_id) == (1, 2)


@pytest.mark.parametrize("content", [None, "[]", "{}"])
def test_a_tokeniser_that_is_lost_or_damaged_is_one_line(
    content: str | None, tmp_path: Path
) -> None:
    alone = tmp_path / f"alone{ALONE}"
    if content is not None:
        alone.write_text(content)
    with pytest.raises(UserError, match=r"alone.tokenizer must (be|hold) .*(Put it|Export)"):
        tokenizer_of(str(alone))
    with pytest.raises(UserError, match="must be a published text model"):
        write_tokenizer(alone, tmp_path / "other.tokenizer")


def test_what_needs_words_of_one_id_each_is_refused() -> None:
    system = shanks_of(len(DATA.words))
    with pytest.raises(UserError, match="at least 263 ids to learn spoken maths"):
        DATA.prepare(shanks_of(262))
    for changes in ({"arrangement": "parallel"}, {"bank": BankConfig(transcribed=True)}):
        data: Any = SpokenMathsData(task=TASK, **changes)
        with pytest.raises(UserError, match="Only words of one id each"):
            data.prepare(system)


def test_what_the_data_are_does_not_change_without_a_tokeniser() -> None:
    """Runs that began before there was one go on."""
    data = SpokenMathsData()
    found = PreparedMaths(data, shanks_of(len(Words())).layout).fingerprint
    known = "ddacd17a87949fa4870f8311ab27673171607cc40d0acf59dde1a904e7064efc"
    assert found == {"problems": {"train": known}}
    assert PreparedMaths(DATA, shanks_of(300).layout).fingerprint != found

import itertools

import numpy as np
import pytest

from counterpoint.data.text.tokenizer import ByteTokenizer
from counterpoint.errors import UserError
from counterpoint.evaluate.passage import continue_prompts, exchange_whole, read_passage
from counterpoint.evaluate.score import score
from counterpoint.runtime.generate import generate
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions
from tests.evaluate.tiny import LENGTHS, deaf, single, two, units

TOKENIZER = ByteTokenizer()


def test_passage_shows_what_each_byte_read_and_cost() -> None:
    system, one = two(), units()[2]
    found = read_passage(system, one, TOKENIZER, first_tick=42, num_ticks=24)
    assert (found.first_tick, found.edges, len(found.symbols)) == (40, tuple(range(0, 25, 4)), 24)
    assert "".join(found.symbols) == TOKENIZER.decode(one.ids[40:64])
    blocks = np.array(found.blocks)
    assert blocks.shape == (24, 6)
    sums = blocks.sum(1) + np.array(found.null) + np.array(found.earlier)
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    # A byte may read the blocks before its own, and those only.
    readable = np.arange(6)[None] < np.arange(24)[:, None] // 4
    assert ((blocks > 0) == readable).all()
    nats = score(system, [one], LENGTHS, block_ticks=4)[0].nats[39:63]
    np.testing.assert_allclose(found.bits, nats / np.log(2), atol=1e-4)


def test_passage_follows_blocks_that_end_early() -> None:
    system, one = two(boundary_ids=(ord("a"), ord("e"))), units()[2]
    found = read_passage(system, one, TOKENIZER, first_tick=42, num_ticks=24)
    assert found.edges[0] == 0
    assert found.edges[-1] == len(found.symbols) <= 24
    for left, right in itertools.pairwise(found.edges):
        early = found.symbols[right - 1] in "ae"
        assert right - left == 4 or (early and right - left < 4)
        assert not set(found.symbols[left : right - 1]) & set("ae")
    blocks = np.array(found.blocks)
    finished = np.searchsorted(found.edges, np.arange(len(found.symbols)), side="right") - 1
    assert ((blocks > 0) == (np.arange(blocks.shape[1])[None] < finished[:, None])).all()


def test_passage_of_a_single_stream_has_bits_only() -> None:
    found = read_passage(single(), units()[2], TOKENIZER, first_tick=90, num_ticks=40)
    assert (found.first_tick, found.blocks, found.null) == (90, (), ())
    assert len(found.bits) == len(found.symbols) == 103 - 90
    assert found.symbols[-1] == "■"


def test_passage_beyond_its_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="must lie within its unit"):
        read_passage(two(), units()[1], TOKENIZER, first_tick=90, num_ticks=8)


def test_a_text_with_fewer_blocks_is_refused_also_at_the_same_tick() -> None:
    system = two(boundary_ids=(ord("a"),))
    sessions = Sessions(system, 1, sliding=True)
    sessions.start(0)
    sessions.feed({0: list(b"abababababab")})
    for text in (b"b" * 11, b"b" * 12):
        with pytest.raises(UserError, match="as many blocks"):
            exchange_whole(sessions, [list(text)])
    exchange_whole(sessions, [list(b"b" * 48)])


def test_continuations_differ_by_the_whole_alone() -> None:
    system, (unit, donor) = two(), (units()[0], units()[3])
    sampling = Sampling(seed=3)
    own, other = continue_prompts(
        system, [(unit, donor)], TOKENIZER, prompt_ticks=32, num_ticks=12, sampling=sampling
    )
    prompt = unit.ids[:32].tolist()
    plain = list(generate(system, prompt, sampling, 12, end_id=TOKENIZER.end_id, sliding=True))
    assert own.text == TOKENIZER.decode(np.array(plain))
    assert own.prompt == other.prompt == TOKENIZER.decode(unit.ids[:32])
    assert (own.whole_of, other.whole_of) == ("Ann 0", "Bob 3")
    assert own.text != other.text


def test_a_whole_that_is_ignored_changes_no_continuation() -> None:
    own, other = continue_prompts(
        deaf(two()), [(units()[0], units()[3])], TOKENIZER, prompt_ticks=32, num_ticks=12
    )
    assert own.text == other.text


def test_single_stream_continues_each_prompt_once() -> None:
    pairs = [(units()[0], units()[3]), (units()[2], units()[0])]
    found = continue_prompts(single(), pairs, TOKENIZER, prompt_ticks=16, num_ticks=5)
    assert [one.source for one in found] == ["Ann 0", "Bob 2"]
    assert {one.whole_of for one in found} == {""}

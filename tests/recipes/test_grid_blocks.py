"""FLOPs that are counted with the words of a task: `counterpoint.recipes.grid_blocks`."""

import pytest
import torch

from counterpoint.data.tasks.named import learned_data, named_task
from counterpoint.recipes.grid import costs
from counterpoint.recipes.grid_blocks import WordBlocks, mean_block_ticks, on_task
from counterpoint.recipes.part_whole import hrt_words, two_stream
from counterpoint.recipes.part_whole_equal import part_whole_equal
from counterpoint.streams.batch import Batch
from counterpoint.systems import single_stream


def _batch(text: str) -> Batch:
    ids = torch.tensor([list(text.encode())])
    start = torch.zeros_like(ids)
    return Batch(ticks={"part": ids}, targets={"part": ids}, document_start=start, size=ids.numel())


@pytest.mark.parametrize(
    ("text", "longest", "blocks"),
    [
        ("ab cd ef ", 8, 3),  # each word with its space
        ("abcdefghij ", 8, 2),  # one is full after eight letters
        ("ab cd e", 8, 2),  # the last one has not ended
        ("abcdef", 2, 3),
    ],
)
def test_blocks_end_at_ids_and_when_they_are_full(text: str, longest: int, blocks: int) -> None:
    assert mean_block_ticks(_batch(text), (ord(" "),), longest) == len(text) / blocks


def test_words_of_a_task_are_counted_as_they_are() -> None:
    data = learned_data(named_task("acrostic_small"), 0)
    ours = on_task(two_stream(), data)
    rival = on_task(hrt_words(), data)
    assert isinstance(ours, WordBlocks)
    assert isinstance(rival, WordBlocks)
    assert ours.usual_block_ticks == rival.usual_block_ticks
    assert ours.usual_block_ticks == pytest.approx(6.0, abs=0.3)  # 3 is what the config says
    plain = single_stream.tiny()
    assert on_task(plain, data) is plain


def test_a_budget_says_what_arms_cost_with_the_words_of_the_task() -> None:
    found = costs(part_whole_equal(), "acrostic_small")
    ours = found["deep_as_large"]
    rival = found["hrt_words"]
    assert rival.flops / ours.flops == pytest.approx(1, abs=0.005)
    assert rival.task_flops / ours.task_flops == pytest.approx(1.07, abs=0.015)

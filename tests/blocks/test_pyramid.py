import pytest
import torch

from counterpoint.blocks.pyramid import Counts, Gather, lay_levels, level_views
from counterpoint.blocks.transformer import Tower, TowerConfig

TOWER = TowerConfig(width=8, num_layers=1, num_heads=2, mlp_hidden=8, window=64)


def ends(position: int, num_steps: int) -> dict[tuple[int, int], list[int]]:
    """Steps at which coarse steps end, by (reader, source); levels of 2 and of 6 steps."""
    finished = (position // 2, position // 6)
    counts = Counts(
        torch.tensor([position]),
        tuple(torch.tensor([number]) for number in finished),
        (torch.tensor([position % 2]), torch.tensor([finished[0] % 3])),
    )
    blocks = lay_levels((1, num_steps), (2, 3), None, None, counts)
    tower = Tower(TOWER)
    read = (counts.position, *counts.finished)
    sizes = (num_steps, *(laid.grid.end.shape[1] for laid in blocks))
    reaches = [
        tower.streaming_reach(before, size, None)
        for before, size in zip(read, sizes, strict=False)
        if size
    ]
    views = level_views(blocks, reaches, counts, 4, (16, 16))
    return {levels: view.end[0].tolist() for levels, view in views.items()}


def test_coarse_steps_stand_at_the_last_step_of_their_blocks() -> None:
    assert ends(0, 13) == {
        (0, 1): [1, 3, 5, 7, 9, 11],
        (0, 2): [5, 11],
        (1, 2): [2, 5],
    }


def test_a_session_counts_on() -> None:
    assert ends(5, 8) == {(0, 1): [5, 7, 9, 11], (0, 2): [5, 11], (1, 2): [2, 5]}


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3])
def test_a_short_block_is_gathered_as_one_without_room(size: int) -> None:
    """A block stands at the end of its room; what is before it is never read."""
    roomy, tight = Gather(TOWER, 6, 8), Gather(TOWER, 6, size)
    torch.nn.init.normal_(roomy.place)
    weights = roomy.state_dict()
    tight.load_state_dict(weights | {"place": roomy.place[:, -size:]})
    x, blocks = torch.randn(2, 3, 8), torch.randn(2, 3, 8, 6)
    real = (torch.arange(8) >= 8 - size).expand(2, 3, -1)
    expected = tight(x, blocks[:, :, -size:], real[:, :, -size:])
    torch.testing.assert_close(roomy(x, blocks * real[..., None], real), expected)

import torch
from torch import nn

from counterpoint.runtime.threads import few_threads


def test_small_models_compute_with_one_thread_and_threads_come_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        with few_threads(nn.Linear(4, 4)):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 4
        with torch.device("meta"):
            large = nn.Linear(8_000, 4_000)
            largest = nn.Linear(100_000, 10_000)
        with few_threads(large):
            assert torch.get_num_threads() == 2
        with few_threads(largest):
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)

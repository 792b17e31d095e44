"""Work on a Ray cluster."""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.errors import UserError
from counterpoint.packages import optional_module
from counterpoint.progress import Progress
from counterpoint.ray_tasks import work_on_ray
from counterpoint.recipes import grid_run
from counterpoint.recipes.cells import keep_outcome
from counterpoint.recipes.grid_run import run_grid
from counterpoint.recipes.grid_workers import Workers
from tests.recipes.test_grid import files, tiny_grid

# A cluster takes ten seconds to start.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Two:
    """A cluster of two machines with one core each."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.second = cluster.add_node(num_cpus=1)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def kill_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)


@pytest.fixture
def two() -> Iterator[Two]:
    clusters = pytest.importorskip("ray.cluster_utils")
    cluster = clusters.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield Two(cluster)
    cluster.shutdown()


class Slow:
    """Counts what it has done in its process."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, item: int) -> tuple[int, str, int, int]:
        ray = optional_module("ray")

        if item < 0:
            raise UserError("below zero")
        time.sleep(0.3)
        self.count += 1
        node = ray.get_runtime_context().get_node_id()
        return item, node, self.count, torch.get_num_threads()


def test_what_a_machine_was_at_when_it_died_is_done_on_another(two: Two) -> None:
    found = []
    with closing(work_on_ray(Slow(), range(12), two.address)) as results:
        for result in results:
            found.append(result)
            if len({node for _, node, _, _ in found}) == 2 and two.second is not None:
                two.kill_second()
                two.second = None
    assert two.second is None, "the second machine has done nothing"
    assert sorted(item for item, *_ in found) == list(range(12))
    assert max(count for *_, count, _ in found) > 1  # work stays ready in its process
    assert {threads for *_, threads in found} == {1}
    with pytest.raises(UserError, match="below zero"):
        list(work_on_ray(Slow(), [0, -1], two.address))


def test_a_grid_whose_machine_dies_gives_what_an_undisturbed_one_gives(
    two: Two, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tiny_grid(seeds=(0, 1, 2))
    run_grid(grid, tmp_path / "here", progress=Progress(quiet=True))
    kept = []

    def keep_and_kill(*given: Any) -> None:
        keep_outcome(*given)
        kept.append(given)
        if len(kept) == 2:
            two.kill_second()

    monkeypatch.setattr(grid_run, "keep_outcome", keep_and_kill)
    workers = Workers(ray=two.address)
    run_grid(grid, tmp_path / "there", workers=workers, progress=Progress(quiet=True))
    assert files(tmp_path / "there") == files(tmp_path / "here")
    assert not (tmp_path / "there" / "work").exists()


def test_where_no_cluster_is_it_is_said_in_one_line() -> None:
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"):
        with pytest.raises(UserError, match=f"A Ray cluster must answer at '{address}'") as caught:
            list(work_on_ray(os.path.basename, ["a"], address))
        assert "\n" not in str(caught.value)

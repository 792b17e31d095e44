from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.data.token_parquet import read_token_parquet


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, Tensor]:
    """Two dialogues of 9 rows (text and 8 codebooks) for either speaker."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    ids = torch.arange(2 * 2 * 9 * 25).view(2, 2, 9, 25)
    table = {"dialogue_id": ["x/0", "x/1"], "A": ids[:, 0].tolist(), "B": ids[:, 1].tolist()}
    parquet.write_table(pyarrow.table(table), tmp_path / "t-001-of-001.parquet")
    return tmp_path, ids


def test_token_parquet_is_read(tokens: tuple[Path, Tensor]) -> None:
    folder, ids = tokens
    for agent, (mine, other) in {"A": (0, 1), "B": (1, 0)}.items():
        examples = list(read_token_parquet(folder, 10, agent))
        assert [(e.source, e.first_frame) for e in examples] == [
            (f"x/{number}", first) for number in (0, 1) for first in (0, 10, 20)
        ]
        last = examples[-1].streams
        assert torch.equal(last["text"], ids[1, mine, 0, 20:])
        assert torch.equal(last["agent"], ids[1, mine, 1:, 20:].T)
        assert torch.equal(last["user"], ids[1, other, 1:, 20:].T)


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"dialogue_id": ["x"], "A": [[[1]]]}, r"must have the columns \['B'\]"),
        ({"dialogue_id": ["x"], "A": [[[1], [1]]], "B": [[[1, 2], [1, 2]]]}, "equal shapes"),
        ({"dialogue_id": ["x"], "A": [[[1]]], "B": [[[1]]]}, "text and at least one codebook"),
        ({"dialogue_id": ["x"], "A": [[[1], [1, 2]]], "B": [[[1], [1]]]}, "equally many ids"),
    ],
)
def test_wrong_token_parquet_is_named(tmp_path: Path, columns: Any, fault: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=fault):
        list(read_token_parquet(tmp_path / "t.parquet", 10))


def test_agent_is_one_of_two(tokens: tuple[Path, Tensor]) -> None:
    with pytest.raises(ValueError, match="`agent` must be A or B: got 'C'"):
        list(read_token_parquet(tokens[0], 10, "C"))

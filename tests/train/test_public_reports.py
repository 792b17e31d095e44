"""Public bug reports on training: docs/reports.md says what became of each."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from counterpoint.errors import UserError
from counterpoint.files import write_tensors
from counterpoint.train.checkpoint import load_weights
from counterpoint.train.config import ScheduleConfig
from counterpoint.train.metrics import TensorBoardLogger
from tests.train.tiny import build, rows, run_here, settings


class Notes:
    """What a run says of its warm-up."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def step(self, report: object) -> None: ...
    def part(self, step: int, num_steps: int, part: int, num_parts: int) -> None: ...
    def close(self) -> None: ...
    def note(self, text: str) -> None:
        if "warm-up" in text:
            self.lines.append(text)


@pytest.mark.parametrize(("warmup_steps", "highest"), [(0, 1), (4, 1), (5, 0.8), (400, 0.01)])
def test_a_warm_up_longer_than_the_run_is_told(
    tmp_path: Path, warmup_steps: int, highest: float
) -> None:
    """prime-rl#968, litgpt#1393: the rate is never reached, and nobody is told."""
    notes = Notes()
    schedule = ScheduleConfig(warmup_steps=warmup_steps)
    config = settings(4, schedule=schedule)
    run_here(tmp_path, config, reporter=notes)
    rates = [line["lr"] for line in rows(tmp_path) if "lr" in line]
    assert max(rates) == pytest.approx(highest * config.optimizer.lr)
    if highest == 1:
        assert notes.lines == []
    else:
        (line,) = notes.lines
        told = f"`warmup_steps` is {warmup_steps}, `num_steps` 4, so the learning rate reaches "
        assert f"{told}{highest:.0%} of its highest value" in line
        assert "\n" not in line
    run_here(tmp_path, config, reporter=notes)  # it is finished: nothing more is said
    assert len(notes.lines) == (highest < 1)


def test_a_run_of_no_steps_is_refused() -> None:
    """prime-rl#968."""
    with pytest.raises(UserError, match="`num_steps` must be"):
        settings(0)


def test_tensorboard_has_every_step_once_after_a_resume(tmp_path: Path) -> None:
    """ParlAI#2106, tensorboard#3732: steps come twice, or are missing."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tmp_path / "board"
    for num_steps in (3, 6):
        run_here(tmp_path / "run", settings(num_steps), loggers=[TensorBoardLogger(board)])
    events = EventAccumulator(str(board))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    values = [event.value for event in events.Scalars("train/loss")]
    losses = [line["loss"] for line in rows(tmp_path / "run") if "loss" in line]
    assert values == pytest.approx(losses)


def test_tensors_that_are_mapped_stay_whole_when_their_file_is_written_again(
    tmp_path: Path,
) -> None:
    """SimpleTuner#2714: tensors that were loaded change, or the process dies."""
    path = tmp_path / "a.safetensors"
    old = {"x": torch.arange(100_000.0)}
    write_tensors(path, old)
    mapped = load_file(path)
    new = {"x": torch.zeros(3)}
    write_tensors(path, new)
    assert torch.equal(mapped["x"], old["x"])
    assert torch.equal(load_file(path)["x"], new["x"])


class Wrapped(nn.Module):
    """What `torch.compile` makes of a module, as far as names go."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def test_weights_of_a_compiled_run_have_the_names_of_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nanoGPT#325: names begin with `_orig_mod.`, and do not load without `compile`."""
    calls: list[object] = []

    def without_kernels(target: object) -> object:
        calls.append(target)
        return Wrapped(target) if isinstance(target, nn.Module) else target

    monkeypatch.setattr(torch, "compile", without_kernels)
    result = run_here(tmp_path, settings(1, compile=True, evaluate_every=0))
    assert len(calls) == 1
    assert load_weights(result.checkpoint).keys() == build().state_dict().keys()
    assert run_here(tmp_path, settings(2)).counters.step == 2

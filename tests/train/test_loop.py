import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from counterpoint.blocks.loss_sums import LossSums
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.config_json import encode
from counterpoint.data.mixture import Evenly, Mixture, WholeBatches
from counterpoint.data.text.corpus import DataConfig, Folder
from counterpoint.streams.batch import Batch
from counterpoint.systems import single_stream
from counterpoint.systems.two_stream import TwoStream, TwoStreamConfig
from counterpoint.train.checkpoint import CheckpointError, checkpoint_paths, load_weights
from counterpoint.train.config import ScheduleConfig, TrainConfig
from counterpoint.train.loop import DivergedError, split_batch, train
from counterpoint.train.metrics import TensorBoardLogger, read_metrics
from counterpoint.train.run import Run
from tests.train.tiny import (
    ROWS,
    TICKS,
    Letters,
    Noisy,
    build,
    measure,
    rows,
    run_here,
    settings,
    states_equal,
)
from tests.train.tiny_frames import Frames, model, plan


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    assert run_here(folder, settings()).finished
    return folder


def assert_same_run(folder: Path, straight: Path) -> None:
    """Bit for bit: every logged number and every weight."""
    assert rows(folder) == rows(straight)
    assert states_equal(load_weights(folder), load_weights(straight))


def start_child(
    folder: Path, config: TrainConfig, width: int = 8, dropout: float = 0.2, delay: float = 0.0
) -> "subprocess.Popen[str]":
    script = Path(__file__).with_name("tiny.py")
    return subprocess.Popen(
        [
            *(sys.executable, script, folder, str(width), str(dropout)),
            *(json.dumps(encode(config)), str(delay)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def wait_until(happened: Any, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


class Interrupted(Letters):
    """Raises a real signal in this process while a step is running."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__()
        self.step = step
        self.number = number

    def batch(self, step: int) -> Batch:
        if step == self.step:
            signal.raise_signal(self.number)
        return super().batch(step)


class Crashing(Letters):
    """The process dies of something else before a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def batch(self, step: int) -> Batch:
        if step == self.step:
            raise ConnectionError("the file server went away")
        return super().batch(step)


def test_loop_records_every_step_and_evaluation_once(straight: Path) -> None:
    lines = rows(straight)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "evaluation" in line] == [2, 4, 6, 8]
    assert [path.name for path in checkpoint_paths(straight)] == ["step_00000008", "step_00000006"]
    last = lines[-1]
    assert last["size"] == 8 * ROWS * TICKS
    assert last["flops"] == 8 * ROWS * TICKS * 300.0
    assert set(lines[0]["terms"]) == {"size"}


def test_loop_reports_loss_in_bits_per_byte(straight: Path) -> None:
    system = build(dropout=0.0)
    batch = Letters().batch(0)
    nats = system.loss(batch).nats.item()
    config = settings(1)
    result = train(system, Letters(), config, straight.with_name("one_step"))
    assert result.loss == pytest.approx(nats / math.log(2) / (ROWS * TICKS), rel=1e-6)


def test_loop_lowers_the_loss(straight: Path) -> None:
    losses = [line["loss"] for line in rows(straight) if "loss" in line]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_resumes_bit_identically(
    number: signal.Signals, tmp_path: Path, straight: Path
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    result = run_here(tmp_path, settings(), loader=Interrupted(3, number))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not result.finished
    assert result.counters.step == 4  # the running step was finished, no other begun
    assert result.checkpoint == checkpoint_paths(tmp_path)[0]
    assert run_here(tmp_path, settings()).finished
    assert_same_run(tmp_path, straight)


def test_signal_in_the_last_step_stops_what_would_follow(tmp_path: Path) -> None:
    last = settings().num_steps
    loader = Interrupted(last - 1, signal.SIGINT)
    result = run_here(tmp_path, settings(), loader=loader, evaluate=None)
    assert result.counters.step == last
    assert not result.finished
    assert run_here(tmp_path, settings(), evaluate=None).finished


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [4, 6, 8])  # without and with a checkpoint of its own, at the end
def test_signal_interrupts_an_evaluation_which_is_then_made_first(
    step: int, number: signal.Signals, tmp_path: Path, straight: Path
) -> None:
    calls: list[int] = []

    def evaluate_long(system: nn.Module) -> Mapping[str, float]:
        calls.append(2 * len(calls) + 2)
        if calls[-1] == step:
            signal.raise_signal(number)
            raise AssertionError("the signal did not interrupt")
        return measure(system)

    result = run_here(tmp_path, settings(), evaluate=evaluate_long)
    assert not result.finished
    assert calls[-1] == result.counters.step == step
    assert result.checkpoint.name == f"step_{step:08d}"
    assert [line["step"] for line in rows(tmp_path) if "evaluation" in line] == calls[:-1]
    assert run_here(tmp_path, settings()).finished
    assert_same_run(tmp_path, straight)


def test_crash_resumes_bit_identically(tmp_path: Path, straight: Path) -> None:
    with pytest.raises(ConnectionError):
        run_here(tmp_path, settings(), loader=Crashing(5))
    assert [line["step"] for line in rows(tmp_path)][-1] == 5  # beyond the checkpoint of step 3
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')  # a half line, as a power cut leaves it
    run_here(tmp_path, settings())
    assert_same_run(tmp_path, straight)


def test_sigterm_ends_a_process_cleanly(tmp_path: Path, straight: Path) -> None:
    child = start_child(tmp_path, settings(evaluate_every=0), delay=0.1)
    metrics = tmp_path / "metrics.jsonl"
    wait_until(lambda: len(read_metrics(metrics)) >= 2)
    child.terminate()
    output, _ = child.communicate(timeout=30)
    assert child.returncode == 0, output
    assert '"finished": false' in output
    step = rows(tmp_path)[-1]["step"]
    assert checkpoint_paths(tmp_path)[0].name == f"step_{step:08d}"
    run_here(tmp_path, settings(evaluate_every=0), evaluate=None)
    expected = [line for line in rows(straight) if "loss" in line]
    assert rows(tmp_path) == expected


def test_kill_in_the_middle_of_a_save_loses_no_checkpoint(tmp_path: Path) -> None:
    width = 512
    folder, straight = tmp_path / "killed", tmp_path / "straight"
    # A constant rate: the runs below differ in their number of steps and in nothing else.
    constant = ScheduleConfig(kind="wsd", warmup_steps=0, final_ratio=1.0)
    config = settings(500, checkpoint_every=1, evaluate_every=0, schedule=constant)
    child = start_child(folder, config, width)
    saves, partial = folder / "checkpoints", ".step_*.partial/optimizer"
    wait_until(lambda: len(checkpoint_paths(folder)) >= 1 and any(saves.glob(partial)))
    child.kill()
    child.communicate(timeout=30)
    assert any(saves.glob(partial)), "the process was not killed within a save"
    step = int(checkpoint_paths(folder)[0].name.removeprefix("step_"))
    config = replace(config, num_steps=step + 2)
    run_here(folder, config, width=width, evaluate=None)
    run_here(straight, replace(config, checkpoint_every=0), width=width, evaluate=None)
    assert not list(saves.glob(".step_*"))
    assert_same_run(folder, straight)


def test_accumulation_gives_the_same_run(tmp_path: Path) -> None:
    losses = []
    for parts in (1, 2, 4):
        folder = tmp_path / str(parts)
        train(build(dropout=0.0), Letters(), settings(accumulation=parts), folder)
        losses.append([(line["loss"], line["grad_norm"]) for line in rows(folder)])
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]))
    torch.testing.assert_close(torch.tensor(losses[2]), torch.tensor(losses[0]))


def test_accumulation_sums_to_the_gradient_of_the_batch() -> None:
    system, batch = build(dropout=0.0), Letters().batch(0)
    gradients = []
    for parts in (1, 2):
        system.zero_grad()
        for part in split_batch(batch, parts):
            assert isinstance(part, Batch)
            (system.loss(part).total / parts).backward()
        gradients.append([p.grad for p in system.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_terms_are_made_of_sums_over_parts(tmp_path: Path) -> None:
    """Not of means of the parts', which have unequally many targets."""
    logged = []
    for parts in (1, 2):
        folder = tmp_path / str(parts)
        config = plan(1, accumulation=parts)
        train(model(), HalfSilent(), config, folder)
        logged.append(rows(folder)[0])
    assert logged[0]["terms"]
    assert logged[1]["terms"] == pytest.approx(logged[0]["terms"], rel=1e-5)
    assert logged[1]["loss"] == pytest.approx(logged[0]["loss"], rel=1e-5)


class HalfSilent(Frames):
    """In its second row most words are not known."""

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        text = batch.targets["text"].clone()
        text[1, 2:] = -1
        return replace(batch, targets={**batch.targets, "text": text})


class Asking(Letters):
    """Batches that come from the model, as rollouts do."""

    model: nn.Module | None = None

    def attach(self, model: nn.Module) -> None:
        self.model = model

    def batch(self, step: int) -> Batch:
        assert self.model is not None
        return super().batch(step)


def test_batches_may_come_from_the_model(tmp_path: Path) -> None:
    system = build()
    alone, mixed = Asking(), Asking()
    train(system, alone, settings(1), tmp_path / "alone")
    assert alone.model is system
    members = {"stored": WholeBatches(Letters()), "asked": WholeBatches(mixed)}
    mixture = Mixture(members, Evenly({"stored": 0.5, "asked": 0.5}))
    train(system, mixture, settings(2), tmp_path / "mixed")
    assert mixed.model is system


def test_uneven_accumulation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a multiple of `accumulation`, got 4 rows in 3"):
        settings(accumulation=3)
    with pytest.raises(ValueError, match=r"`batch_rows` must be divided evenly.*gives 4 a process"):
        run_here(tmp_path, settings(batch_rows=8))


class Poisoned(Noisy):
    """Its loss is not a number on a marked batch."""

    def losses(self, batch: Batch) -> dict[str, LossSums]:
        broken = bool((batch.targets["part"] >= 17).any())
        targets = {"part": batch.targets["part"].clamp(max=16)}
        scale = float("nan") if broken else 1.0
        found = super().losses(replace(batch, targets=targets))
        return {
            name: sums._replace(nats=sums.nats * scale, weighted_nats=sums.weighted_nats * scale)
            for name, sums in found.items()
        }


def test_nan_stops_and_names_step_and_checkpoint(tmp_path: Path) -> None:
    system = Poisoned(build().config)
    with pytest.raises(DivergedError, match=r"step 5 has a loss of nan.*step_00000003") as error:
        train(system, Letters(broken_step=4), settings(), tmp_path)
    assert "\n" not in str(error.value)
    assert all(p.isfinite().all() for p in system.parameters())
    assert rows(tmp_path)[-1]["step"] == 4


def test_bfloat16_trains_float32_weights(tmp_path: Path, straight: Path) -> None:
    run_here(tmp_path, settings(precision="bfloat16"))
    assert all(w.dtype == torch.float32 for w in load_weights(tmp_path).values())
    losses = [line["loss"] for line in rows(tmp_path) if "loss" in line]
    exact = [line["loss"] for line in rows(straight) if "loss" in line]
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.02)


def test_finished_run_returns_at_once(straight: Path) -> None:
    before = (straight / "metrics.jsonl").read_text()
    result = run_here(straight, settings())
    assert result.finished
    assert math.isnan(result.loss)
    assert (straight / "metrics.jsonl").read_text() == before


def test_changed_config_is_noted_on_resume(tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes:
        def step(self, report: object) -> None: ...
        def part(self, step: int, num_steps: int, part: int, num_parts: int) -> None: ...
        def note(self, text: str) -> None:
            notes.append(text)

        def close(self) -> None: ...

    run_here(tmp_path, settings(3))
    run_here(tmp_path, settings(4, schedule=ScheduleConfig(warmup_steps=1)), reporter=Notes())
    assert any("changed train config.num_steps (3, here 4)" in text for text in notes)


def test_parts_of_a_step_are_shown_before_it_is_done(tmp_path: Path) -> None:
    told: list[tuple[int, ...]] = []

    class Parts:
        def step(self, report: object) -> None:
            told.append(())

        def part(self, *numbers: int) -> None:
            told.append(numbers)

        def note(self, text: str) -> None: ...
        def close(self) -> None: ...

    config = settings(2, batch_rows=4, accumulation=4)
    run_here(tmp_path, config, reporter=Parts())
    assert told[:4] == [(0, 2, 1, 4), (0, 2, 2, 4), (0, 2, 3, 4), ()]
    assert told[4:] == [(1, 2, 1, 4), (1, 2, 2, 4), (1, 2, 3, 4), ()]


RUN = Run(
    name="tiny",
    system=single_stream.tiny(),
    train=settings(),
    data=DataConfig(held_out=("Ruth",)),
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": ("Esther",)}, r"data\.held_out\[0\] \('Ruth', here 'Esther'\)"),
        ({"source": Folder(path="b")}, r"data\.source\.type \('Kjv', here 'Folder'\)"),
        ({"row_ticks": 512}, r"data\.row_ticks \(1024, here 512\)"),
        ({"tokenizer": "t.json"}, r"data\.tokenizer \('bytes', here 't\.json'\)"),
    ],
)
def test_other_data_is_refused_on_resume(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run_here(tmp_path, settings(2), run=encode(RUN))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    other = replace(RUN, data=replace(RUN.text_data, **changes))
    with pytest.raises(CheckpointError, match=message + r"\. Train in another folder") as error:
        run_here(tmp_path, settings(4), run=encode(other))
    assert "\n" not in str(error.value)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_same_data_in_another_cache_goes_on(tmp_path: Path) -> None:
    run_here(tmp_path, settings(2), run=encode(RUN))
    moved = replace(RUN, data=replace(RUN.text_data, cache_folder="elsewhere"))
    assert run_here(tmp_path, settings(4), run=encode(moved)).counters.step == 4


def test_tensorboard_receives_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = tmp_path / "board"
    run_here(tmp_path, settings(4), loggers=[TensorBoardLogger(board)])
    events = EventAccumulator(str(board))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("evaluation/nats")] == [2, 4]
    values = [event.value for event in events.Scalars("train/loss")]
    assert values == pytest.approx([line["loss"] for line in rows(tmp_path) if "loss" in line])


def test_compiling_irregular_streams_is_refused(tmp_path: Path) -> None:
    tower = TowerConfig(width=8, num_layers=2, num_heads=1, mlp_hidden=8, window=4)
    system = TwoStream(
        TwoStreamConfig(part=tower, whole=tower, lower_layers=1, boundary_ids=(1,), vocab_size=8)
    )
    with pytest.raises(ValueError, match="'whole' is irregular"):
        train(system, Letters(), settings(1, compile=True), tmp_path)


@pytest.mark.slow
def test_compiled_loss_trains_alike(tmp_path: Path) -> None:
    """In processes of their own: the compiler cannot look through run-time type checks."""
    losses = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        child = start_child(folder, settings(4, compile=compiled, evaluate_every=0), dropout=0.0)
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0, output
        losses.append([line["loss"] for line in rows(folder)])
        assert load_weights(folder).keys() == build(dropout=0.0).state_dict().keys()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)

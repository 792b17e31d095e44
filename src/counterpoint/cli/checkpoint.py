"""What the verbs that take a CKPT read from it."""

import sys
from dataclasses import dataclass
from pathlib import Path

from counterpoint.config_json import decode
from counterpoint.data.text.tokenizer import Tokenizer, load_tokenizer
from counterpoint.systems import SYSTEMS, AnySystem
from counterpoint.systems.moshi_streams import MoshiConfig
from counterpoint.train.checkpoint import load_system, read_manifest, resolve
from counterpoint.train.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A trained model and what belongs to it.

    Attributes:
        path: Its checkpoint.
        system: The model, in evaluation mode.
        run: What it was trained by.
    """

    path: Path
    system: AnySystem
    run: Run


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user names: itself, or a run folder's newest good one.

    Raises:
        ValueError: There is none; the folder of a study has one for each arm.
    """
    arms = [str(arm.parent) for arm in sorted(path.glob("*/checkpoints"))]
    if arms and not (path / "checkpoints").exists():
        raise ValueError(f"{path} must be one run: it is a study. Name one of {', '.join(arms)}.")
    return resolve(path, lambda line: print(line, file=sys.stderr))


def load_run(path: Path) -> Run:
    """The run that wrote a checkpoint.

    Raises:
        ValueError: The checkpoint was written without its run.
    """
    saved = read_manifest(path).get("run")
    if saved is None:
        raise ValueError(
            f"{path} must hold the run that trained it: it holds none. "
            "Train with `counterpoint train`, or give `run` to `train`."
        )
    run = decode(Run, saved, "run")
    if not isinstance(run, Run):
        raise AssertionError("decode returns what it is asked for")
    return run


def load_trained(path: Path) -> Trained:
    """Load a checkpoint, or a run folder's newest good one.

    Raises:
        ValueError: It cannot be used.
    """
    path = find_checkpoint(path)
    run = load_run(path)
    system = load_system(path)
    if not isinstance(system, AnySystem):
        raise ValueError(
            f"{path} must hold one of {', '.join(SYSTEMS)}: got {type(system).__name__}."
        )
    return Trained(path=path, system=system, run=run)


def tokenizer_of(run: Run) -> Tokenizer:
    """The tokeniser of a run on text.

    Raises:
        ValueError: The run is on speech, or the tokeniser cannot be used, or the model has not as
            many ids.
    """
    name, system = run.text_data.tokenizer, run.system
    tokenizer = load_tokenizer(name)
    if isinstance(system, MoshiConfig):
        raise AssertionError("a run checks that its data fit")
    if system.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"`system.vocab_size` must be that of the tokeniser {name!r}, "
            f"{tokenizer.vocab_size}: got {system.vocab_size}. Change one of them."
        )
    return tokenizer

"""The verb ``generate``: continue a prompt, and write the text as it comes."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

from counterpoint.blocks.quantized import store_int8
from counterpoint.cli.checkpoint import load_trained, tokenizer_of
from counterpoint.data.text.tokenizer import Tokenizer
from counterpoint.recipes.overrides import REQUIRED, parse
from counterpoint.runtime.compiled import compile_ticks
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import generate
from counterpoint.runtime.simultaneous import Simultaneous
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.two_stream import TwoStream

_HELP = """Continue a prompt.

Example: counterpoint generate runs/first_run/two_stream --prompt "And God said" --temperature 0.8
"""
_LONGEST_CHARACTER = 4  # bytes of UTF-8
_CONTEXT_IDS = 8  # enough for a decoder that looks at the id before


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """What ``generate`` does.

    Attributes:
        checkpoint: A checkpoint or a run folder.
        prompt: Text to continue; empty starts a new text.
        prompt_file: File with the text to continue.
        num_ticks: Most ids to write.
        whole_from: Go on under the whole of this text, at least as long as the prompt (two_stream).
        simultaneous: Run the whole tower in a thread beside the part tower (a lag of 1 or more).
        sliding: Accept a prompt that is longer than the model's window.
        compile: Compile the ticks first: half a minute, then a tiny model is 1.4 times as fast.
        weights: ``"int8"`` stores the matrices in 8 bits: faster where reading them takes the time.
    """

    checkpoint: tyro.conf.Positional[Path]
    prompt: str = ""
    prompt_file: Path | None = None
    num_ticks: int = 400
    whole_from: str | None = None
    simultaneous: bool = False
    sliding: bool = False
    compile: bool = False
    weights: Literal["float32", "int8"] = "float32"


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    defaults = [
        ("options", GenerateOptions, REQUIRED),
        ("sampling", Sampling, Sampling()),
    ]
    chosen = parse(defaults, arguments, "generate", _HELP)
    options: GenerateOptions = chosen.options
    prompt = _prompt(options)
    trained = load_trained(options.checkpoint)
    system = trained.system
    if isinstance(system, Moshi):
        raise ValueError(
            f"{trained.path} must be a model of text: it is a Moshi, which hears and speaks. Use "
            "`counterpoint talk`."
        )
    tokenizer = tokenizer_of(trained.run)
    print(prompt, end="", flush=True)
    with ExitStack() as stack:
        if options.weights == "int8":
            store_int8(system)
        if options.compile:
            compile_ticks(system)
        beside = None
        if options.simultaneous:
            beside = stack.enter_context(_simultaneous(system))
        ids = generate(
            beside or system,
            _ids(tokenizer, prompt),
            chosen.sampling,
            options.num_ticks,
            end_id=tokenizer.end_id,
            whole_from=None if options.whole_from is None else _ids(tokenizer, options.whole_from),
            sliding=options.sliding,
        )
        before = tokenizer.encode(prompt)[-_CONTEXT_IDS:].tolist()
        for piece in text_pieces(tokenizer, ids, before):
            print(piece, end="", flush=True)
        print()
        if beside is not None:
            print(
                f"whole tower: {beside.num_jobs} chunks beside the part tower, "
                f"{beside.num_misses} came late",
                file=sys.stderr,
            )
    return 0


def _prompt(options: GenerateOptions) -> str:
    if options.prompt_file is None:
        return options.prompt
    if options.prompt:
        raise ValueError("Give either `--prompt` or `--prompt-file`: got both.")
    try:
        return options.prompt_file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{options.prompt_file} must be UTF-8 text: {error.reason} at byte {error.start}."
        ) from error


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.start_id, *tokenizer.encode(text).tolist()]


def _simultaneous(system: torch.nn.Module) -> Simultaneous:
    if not isinstance(system, TwoStream):
        raise ValueError(
            f"`--simultaneous` needs a TwoStream: this checkpoint is a {type(system).__name__}."
        )
    # One core for the whole tower, the others for the part tower.
    torch.set_num_threads(max(torch.get_num_threads() - 1, 1))
    return Simultaneous(system)


def text_pieces(
    tokenizer: Tokenizer, ids: Iterable[int], before: Sequence[int] = ()
) -> Iterator[str]:
    """Text of ids as they come; a character waits for its last byte.

    Args:
        tokenizer: Made the ids.
        ids: What is decoded.
        before: Ids before them, which some decoders look at.
    """
    shown, waiting = list(before), list[int]()

    def text(more: Sequence[int]) -> str:
        return tokenizer.decode(np.array([*shown, *more], dtype=np.int64))

    for one in ids:
        waiting.append(one)
        decoded = text(waiting)
        if decoded.endswith("\N{REPLACEMENT CHARACTER}") and len(waiting) < _LONGEST_CHARACTER:
            continue
        yield decoded[len(text(())) :]
        shown, waiting = (waiting if len(waiting) > 1 else [*shown[1 - _CONTEXT_IDS :], one]), []
    if waiting:
        yield text(waiting)[len(text(())) :]

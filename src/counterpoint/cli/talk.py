"""The verb ``talk``: a checkpoint answers a recording, time-synchronously."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from counterpoint.data.speech.user_words import read_user_words
from counterpoint.errors import UserError
from counterpoint.evaluate.report.answer import (
    ENDINGS,
    answer_files,
    is_cut_short,
    measured,
    observe_answer,
    write_answer,
)
from counterpoint.evaluate.report.conversation_figure import Talk
from counterpoint.files import shown
from counterpoint.formats import is_voice
from counterpoint.recipes.overrides import REQUIRED, parse
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.load import load
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.talk import Conversation, begin, converse
from counterpoint.speech.audio import (
    AudioInfo,
    audio_blocks,
    inspect_audio,
    verify_audio,
    write_stereo,
)
from counterpoint.streams.timeline import Timeline

_HELP = """Answer a recording as if it were heard live.

OUTPUT.wav has the agent left and the user right, as long as the recording. Beside it come what was
said (.txt, .json), the timeline (.timeline.jsonl), a picture (.png) and a page (.html).

Example: counterpoint talk runs/NAME --input question.wav --output answer.wav --tail 5
"""

_BLOCK_S = 1.0
_LONGEST_TAIL_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TalkOptions:
    """What ``talk`` does.

    Attributes:
        checkpoint: A checkpoint or run folder, or a folder of a published Moshi or PersonaPlex.
        input: The recording: WAV, FLAC, Ogg; of any rate.
        output: The WAV file to write; names the others.
        prompt: Role of the agent, as PersonaPlex reads it.
        voice: A recording of the voice the agent shall have, or a voice of PersonaPlex (.pt).
        pin: Let prompt and voice stay when the model's window has moved on.
        words: What is said in the recording (JSON with alignments or chunks), for the picture.
        channel: The channel of the recording to hear, 0 is the left; the mean of all by default.
        tail: Seconds of silence that are heard behind the recording.
        device: Where the model computes.
    """

    checkpoint: tyro.conf.Positional[Path]
    input: Path
    output: Path
    prompt: str = ""
    voice: Path | None = None
    pin: bool = False
    words: Path | None = None
    channel: int | None = None
    tail: float = 0.0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class TalkChoices:
    """How the agent chooses what it says.

    Attributes:
        seed: Decides its choices.
        text_temperature: Divides the scores of the text; 0 takes the likeliest id.
        text_top_k: Likeliest text ids to choose among; 0 keeps all.
        padding_bias: Added to the score of no text: above 0 the agent is slower to speak.
        audio_temperature: Divides the scores of the audio; likewise.
        audio_top_k: Likeliest audio ids to choose among; 0 keeps all.
    """

    seed: int = 0
    text_temperature: float = 0.7
    text_top_k: int = 25
    padding_bias: float = 0.0
    audio_temperature: float = 0.8
    audio_top_k: int = 250


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words that follow it."""
    fields = [("options", TalkOptions, REQUIRED), ("choices", TalkChoices, TalkChoices())]
    chosen = parse(fields, arguments, "talk", _HELP)
    options: TalkOptions = chosen.options
    recorded = _check(options)
    sampling = _sampling(chosen.choices)
    user_words = read_user_words(options.words) if options.words else Timeline()
    talker = load(options.checkpoint, options.device).talker
    rate = talker.codec.sample_rate
    blocks = _heard(options, recorded, rate)
    prompt, prefix = begin(talker, options.prompt, options.voice)
    conversation = Conversation(talker, sampling, prompt=prompt, prefix=prefix, pin=options.pin)
    pieces = converse(conversation, blocks, options.tail)
    duration_s = recorded.duration_s + options.tail
    num_clipped = write_stereo(options.output, _shown(pieces, duration_s, rate), rate)
    model = Path(shown(options.checkpoint.resolve()))
    heard = Path(shown(options.input))
    title = f"{model.name} answers {heard.name}"
    words = conversation.words().merge(user_words)
    talk = observe_answer(title, options.output, rate, words)
    numbers = measured(talk.found, conversation.step_s, talker.codec.frame_rate_hz)
    write_answer(options.output, talk, numbers, asdict(options) | asdict(chosen.choices))
    _print(options.output, talk, numbers, num_clipped)
    return 0


def _check(options: TalkOptions) -> AudioInfo:
    """Refuse what would fail late, or write over what is read; tell what the input is."""
    output = options.output
    tail = options.tail
    if output.suffix.lower() != ".wav":
        raise UserError(f"`--output` must end in .wav: got {str(output)!r}.")
    if output.is_dir():
        raise UserError(f"`--output` must be a file: {str(output)!r} is a folder.")
    if not output.parent.is_dir():
        raise UserError(f"The folder of `--output` must exist: {str(output.parent)!r} does not.")
    if not 0 <= tail <= _LONGEST_TAIL_S:
        raise UserError(f"`--tail` must be 0 to {_LONGEST_TAIL_S:.0f} seconds: got {tail}.")
    read = {path.resolve() for path in (options.input, options.voice, options.words) if path}
    for written in answer_files(output).values():
        if written.resolve() in read:
            raise UserError(f"`--output` must not write over what is read: {written} is both.")
    recorded = verify_audio(options.input)  # what is wrong at its end must not cost the answer
    _check_opening(options)
    return recorded


def _check_opening(options: TalkOptions) -> None:
    if options.pin and options.voice is None and not options.prompt.strip():
        raise UserError("`--pin` must have what it keeps: got none. Give `--prompt` or `--voice`.")
    if options.voice is None:
        return
    if not is_voice(options.voice):
        inspect_audio(options.voice)
    elif not options.voice.is_file():
        raise UserError(f"`--voice` must be an existing file: got {str(options.voice)!r}.")


def _sampling(choices: TalkChoices) -> FrameSampling:
    def own(temperature: float, top_k: int) -> Sampling:
        return Sampling(temperature=temperature, top_k=top_k, seed=choices.seed)

    return FrameSampling(
        text=own(choices.text_temperature, choices.text_top_k),
        audio=own(choices.audio_temperature, choices.audio_top_k),
        padding_bias=choices.padding_bias,
    )


def _heard(options: TalkOptions, info: AudioInfo, rate: int) -> Iterator[Tensor]:
    """The recording at the codec's rate, one channel of it or their mean."""
    if round(info.duration_s * rate) < 1:
        raise UserError(
            f"The recording must last at least one sample of the codec, {1 / rate:.6f} s: got "
            f"{info.duration_s:.6f} s."
        )
    if options.channel is None:
        return audio_blocks(options.input, rate, 1, _BLOCK_S)
    channel = options.channel
    if not 0 <= channel < info.num_channels:
        raise UserError(f"`--channel` must be 0 to {info.num_channels - 1}: got {channel}.")
    blocks = audio_blocks(options.input, rate, info.num_channels, _BLOCK_S)
    return (block[channel : channel + 1] for block in blocks)


def _shown(pieces: Iterable[Tensor], duration_s: float, rate: int) -> Iterator[Tensor]:
    """The same pieces, with a bar of the seconds that have been heard."""
    columns = (
        TextColumn("talking"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} s"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(file=sys.stderr, markup=False, emoji=False), transient=True
    ) as progress:
        task = progress.add_task("", total=duration_s)
        for piece in pieces:
            progress.advance(task, piece.shape[1] / rate)
            yield piece


def _print(output: Path, talk: Talk, numbers: dict[str, str], num_clipped: int) -> None:
    table = Table("measure", "value", title=talk.title)
    for name, value in numbers.items():
        table.add_row(name, value)
    Console(file=sys.stdout, markup=False, emoji=False).print(table)
    for ending in ENDINGS:
        print(shown(answer_files(output)[ending]))
    if num_clipped:
        print(
            f"{num_clipped:,} samples of {shown(output)} are beyond full scale and clipped: the "
            "recording is too loud, or its scale is another.",
            file=sys.stderr,
        )
    if is_cut_short(talk.found):
        print(
            "The recording ends before the agent's answer does: `--tail 10` listens on.",
            file=sys.stderr,
        )

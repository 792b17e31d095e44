"""The verb ``talk``: a checkpoint answers a recording, time-synchronously."""

import base64
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from counterpoint.cli.checkpoint import find_checkpoint, load_run
from counterpoint.data.speech.alignments import AGENT_SPEAKER
from counterpoint.data.speech.rows import SpeechData, codec_of
from counterpoint.data.speech.user_words import read_user_words
from counterpoint.data.speech.words import open_tokenizer
from counterpoint.evaluate.duplex.turns import (
    TurnTaking,
    as_timeline,
    measure_levels,
    percentile,
    speech_segments,
    take_turns,
)
from counterpoint.evaluate.report.conversation_figure import Talk, draw_conversation
from counterpoint.evaluate.report.conversation_page import conversation_page
from counterpoint.formats.moshi.checkpoint import load_moshi
from counterpoint.formats.moshi.voice import FILES as VOICE_FILES
from counterpoint.formats.moshi.voice import read_voice
from counterpoint.formats.moshi.weights import CONFIG, WEIGHTS, WEIGHTS_INT8, read_json
from counterpoint.recipes.overrides import REQUIRED, parse
from counterpoint.runtime.frames import FrameSampling
from counterpoint.runtime.prompts import Prefix
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.talk import (
    AGENT,
    USER,
    Conversation,
    Speaker,
    agent_alone,
    converse,
    opening,
    opening_in_voice,
)
from counterpoint.speech.audio import audio_blocks, inspect_audio, read_audio, write_stereo
from counterpoint.streams.spec import Ticks
from counterpoint.streams.timeline import Timeline
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.personaplex import Fillers, check_voice
from counterpoint.train.checkpoint import MANIFEST, load_system

_HELP = """Answer a recording as if it were heard live.

OUTPUT.wav has the agent left and the user right, as long as the recording. Beside it come what was
said (.txt, .json), the timeline (.timeline.jsonl), a picture (.png) and a page (.html).

Example: counterpoint talk runs/NAME --input question.wav --output answer.wav --tail 5
"""

MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TEXT_FILE = "tokenizer_spm_32k_3.model"
"""Names of Mimi's weights and of the text tokeniser beside the published models."""

_KNOWN_FILLERS = (2048,) * 8  # codebooks of the Mimi for which PersonaPlex gives codes
ENDINGS = (".wav", ".txt", ".json", ".timeline.jsonl", ".png", ".html")
_BLOCK_S = 1.0
_EMBEDDED_BYTES = 8_000_000  # a larger recording stays beside its page
_LONGEST_TAIL_S = 600.0
_SOON_S = 2.0  # a turn that ends so near the end has hardly been given time


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
class Choices:
    """How the agent chooses what it says.

    Attributes:
        seed: Of its choices.
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
    fields = [("options", TalkOptions, REQUIRED), ("choices", Choices, Choices())]
    chosen = parse(fields, arguments, "talk", _HELP)
    options: TalkOptions = chosen.options
    _check(options)
    sampling = _sampling(chosen.choices)
    user_words = read_user_words(options.words) if options.words else Timeline()
    speaker = open_speaker(options.checkpoint, options.device)
    rate = speaker.codec.sample_rate
    blocks = _heard(options, rate)
    prompt, prefix = _opening(options, speaker)
    conversation = Conversation(speaker, sampling, prompt=prompt, prefix=prefix, pin=options.pin)
    pieces = converse(conversation, blocks, options.tail)
    duration_s = inspect_audio(options.input).duration_s + options.tail
    write_stereo(options.output, _shown(pieces, duration_s, rate), rate)
    talk = _observed(options, conversation, user_words)
    numbers = measured(talk.found, conversation.step_s, speaker.codec.frame_rate_hz)
    _write_outputs(options.output, talk, numbers, asdict(options) | asdict(chosen.choices))
    _print(options, talk, numbers)
    return 0


# ---------------------------------------------------------------------------------------- loading


def open_speaker(path: Path, device: torch.device | str = "cpu") -> Speaker:
    """The model of a checkpoint, trimmed to the agent, with its codec and tokeniser.

    Args:
        path: A checkpoint or run folder of ours; or a folder (or a file of weights in it) with the
            published names: the model, Mimi and the text tokeniser.
        device: Where model and Mimi compute.

    Raises:
        ValueError: It cannot be used, lacks a part, or its system does not talk.
    """
    device = _device(device)
    if _is_published(path):
        return _published_speaker(path, device)
    path = find_checkpoint(path)
    run = load_run(path)
    if not isinstance(run.data, SpeechData):
        raise ValueError(
            f"{path} must hold a system that talks, a {Moshi.__name__} trained on speech: got "
            f"{type(run.system).__name__.removesuffix('Config')}, trained on text. For text there "
            "is `counterpoint generate`."
        )
    system = load_system(path)
    if not isinstance(system, Moshi):
        raise AssertionError("load_system returns the system of the manifest")
    system = agent_alone(system).to(device)
    return Speaker(
        system=system,
        codec=codec_of(system, run.data.codec, device),
        tokenizer=open_tokenizer(run.data.tokenizer),
    )


def _published_speaker(path: Path, device: torch.device) -> Speaker:
    folder = path if path.is_dir() else path.parent
    names = {"mimi_name": MIMI_FILE, "tokenizer_name": TEXT_FILE}
    if (folder / CONFIG).is_file():
        named = read_json(folder / CONFIG)
        names = {key: str(named.get(key) or name) for key, name in names.items()}
    for name in names.values():
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} must hold the model, Mimi and the text tokeniser: {name} is missing. "
                "Fetch it from where the model came."
            )
    # What can be wrong quickly comes before the gigabytes.
    tokenizer = open_tokenizer(str(folder / names["tokenizer_name"]))
    system = agent_alone(load_moshi(path)).to(device)
    codec = codec_of(system, str(folder / names["mimi_name"]), device)
    is_known = codec.codebook_sizes == _KNOWN_FILLERS
    fillers = Fillers() if is_known else None
    return Speaker(system=system, codec=codec, tokenizer=tokenizer, fillers=fillers)


def _is_published(path: Path) -> bool:
    """Whether it is a folder of the Moshi family, not one of ours, which has a manifest."""
    if path.is_dir():
        ours = (path / MANIFEST).exists() or (path / "checkpoints").exists()
        return not ours and any((path / n).is_file() for n in (CONFIG, WEIGHTS, WEIGHTS_INT8))
    return path.suffix == ".safetensors"


def _device(name: torch.device | str) -> torch.device:
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # what cannot be read, such as "meta", is no place to compute
        return probe.device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"`--device` must be one that torch can use: got {name} ({reason})."
        ) from None


# ---------------------------------------------------------------------------------------- options


def _check(options: TalkOptions) -> None:
    """Refuse what would fail late, or write over what is read."""
    output, tail = options.output, options.tail
    if output.suffix.lower() != ".wav":
        raise ValueError(f"`--output` must end in .wav: got {str(output)!r}.")
    if output.is_dir():
        raise ValueError(f"`--output` must be a file: {str(output)!r} is a folder.")
    if not output.parent.is_dir():
        raise ValueError(f"The folder of `--output` must exist: {str(output.parent)!r} does not.")
    if not 0 <= tail <= _LONGEST_TAIL_S:
        raise ValueError(f"`--tail` must be 0 to {_LONGEST_TAIL_S:.0f} seconds: got {tail}.")
    read = {path.resolve() for path in (options.input, options.voice, options.words) if path}
    for written in outputs(output).values():
        if written.resolve() in read:
            raise ValueError(f"`--output` must not write over what is read: {written} is both.")
    inspect_audio(options.input)
    _check_opening(options)


def _check_opening(options: TalkOptions) -> None:
    if options.pin and options.voice is None and not options.prompt.strip():
        raise ValueError("`--pin` must have what it keeps: got none. Give `--prompt` or `--voice`.")
    if options.voice is None:
        return
    if options.voice.suffix not in VOICE_FILES:
        inspect_audio(options.voice)
    elif not options.voice.is_file():
        raise ValueError(f"`--voice` must be an existing file: got {str(options.voice)!r}.")


def outputs(path: Path) -> dict[str, Path]:
    """The files of an answer, by ending."""
    return {ending: path.with_name(path.stem + ending) for ending in ENDINGS[1:]} | {".wav": path}


def _sampling(choices: Choices) -> FrameSampling:
    def own(temperature: float, top_k: int) -> Sampling:
        return Sampling(temperature=temperature, top_k=top_k, seed=choices.seed)

    return FrameSampling(
        text=own(choices.text_temperature, choices.text_top_k),
        audio=own(choices.audio_temperature, choices.audio_top_k),
        padding_bias=choices.padding_bias,
    )


# ---------------------------------------------------------------------------------------- running


def _opening(options: TalkOptions, speaker: Speaker) -> tuple[Ticks | None, Prefix | None]:
    """What was before the conversation, and what of it has been read."""
    if options.voice is not None and options.voice.suffix in VOICE_FILES:
        voice = read_voice(options.voice, speaker.system.config)
        return opening_in_voice(speaker, voice, options.prompt)
    sample = None
    if options.voice is not None:
        duration_s = inspect_audio(options.voice).duration_s  # reading an hour takes long
        check_voice(speaker.system.config, duration_s * speaker.codec.frame_rate_hz)
        sample = read_audio(options.voice, speaker.codec.sample_rate, 1)[0]
    return opening(speaker, options.prompt, sample), None


def _heard(options: TalkOptions, rate: int) -> Iterator[Tensor]:
    """The recording at the codec's rate, one channel of it or their mean."""
    info = inspect_audio(options.input)
    if round(info.duration_s * rate) < 1:
        raise ValueError(
            f"The recording must last at least one sample of the codec, {1 / rate:.6f} s: got "
            f"{info.duration_s:.6f} s."
        )
    if options.channel is None:
        return audio_blocks(options.input, rate, 1, _BLOCK_S)
    channel = options.channel
    if not 0 <= channel < info.num_channels:
        raise ValueError(f"`--channel` must be 0 to {info.num_channels - 1}: got {channel}.")
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


def _observed(options: TalkOptions, conversation: Conversation, user_words: Timeline) -> Talk:
    """What happened, by the recording that was written."""
    rate = conversation.speaker.codec.sample_rate
    levels = measure_levels(audio_blocks(options.output, rate, 2), rate)
    agent, user = (speech_segments(channel, levels.duration_s) for channel in levels.loudness_db)
    words = conversation.words().merge(user_words).cut(0, levels.duration_s)
    title = f"{options.checkpoint.resolve().name} answers {options.input.name}"
    return Talk(
        title=title,
        levels=levels,
        found=take_turns(agent, user, levels.duration_s),
        words=words,
    )


def measured(found: TurnTaking, step_s: Sequence[float], frame_rate_hz: float) -> dict[str, str]:
    """The numbers of an answer, spelled out; a dash where nothing could be measured."""
    latencies, overlaps = found.latencies_s, found.overlaps
    num_answered = sum(answer.outcome == "answered" for answer in found.answers)
    p50, p95 = (1000 * percentile(step_s, share) for share in (0.5, 0.95))
    factor = sum(step_s) * frame_rate_hz / len(step_s) if step_s else math.nan
    total_s = sum(overlap.end_s - overlap.start_s for overlap in overlaps)
    return {
        "turns answered": f"{num_answered} of {found.num_due}",
        "latency, median": _spelled(percentile(latencies, 0.5), "{:.2f} s"),
        "overlaps": f"{len(overlaps)} ({total_s:.1f} s)" if overlaps else "0",
        "the agent yielded": str(sum(o.yields and o.second == USER for o in overlaps)),
        "real-time factor": _spelled(factor, "{:.3f}"),
        f"step p50 / p95, of {1000 / frame_rate_hz:g} ms": _spelled(
            p50, f"{{:.1f}} / {p95:.1f} ms"
        ),
    }


def _spelled(value: float, pattern: str) -> str:
    return "\N{EN DASH}" if math.isnan(value) else pattern.format(value)


# ---------------------------------------------------------------------------------------- writing


def _write_outputs(
    output: Path, talk: Talk, numbers: Mapping[str, str], options: Mapping[str, Any]
) -> None:
    paths = outputs(output)
    said = spoken_words(talk.words)
    paths[".txt"].write_text(said["text"] + "\n", encoding="utf-8")
    paths[".json"].write_text(
        json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    events = talk.words.merge(as_timeline(talk.found))
    header = {"audio": output.name, "left": AGENT, "right": USER, "options": settings}
    replace(events, header=header).write(paths[".timeline.jsonl"])
    picture = draw_conversation(talk)
    paths[".png"].write_bytes(picture)
    recording = output.read_bytes() if _is_embedded(output) else b""
    source = (
        f"data:audio/wav;base64,{base64.b64encode(recording).decode()}"
        if recording
        else quote(output.name)
    )
    page = conversation_page(talk, picture, source, numbers, settings)
    paths[".html"].write_text(page, encoding="utf-8")


def _is_embedded(path: Path) -> bool:
    return path.stat().st_size < _EMBEDDED_BYTES


def spoken_words(words: Timeline) -> dict[str, Any]:
    """The agent's words as alignments and as chunks, both of them forms that others read."""
    spoken = [
        (event.text, [round(event.start_s, 3), round(event.end_s, 3)])
        for event in words.where(stream=AGENT)
    ]
    return {
        "text": " ".join(text for text, _ in spoken),
        "chunks": [{"text": text, "timestamp": times} for text, times in spoken],
        "alignments": [[text, times, AGENT_SPEAKER] for text, times in spoken],
    }


def _print(options: TalkOptions, talk: Talk, numbers: Mapping[str, str]) -> None:
    table = Table("measure", "value", title=talk.title)
    for name, value in numbers.items():
        table.add_row(name, value)
    Console(file=sys.stdout, markup=False, emoji=False).print(table)
    for ending in ENDINGS:
        print(outputs(options.output)[ending])
    if _is_cut_short(talk.found):
        print(
            "The recording ends before the agent's answer does: `--tail 10` listens on.",
            file=sys.stderr,
        )


def _is_cut_short(found: TurnTaking) -> bool:
    """Whether the agent still speaks at the end, or had little time to answer."""
    end_s = found.duration_s
    late = [
        a for a in found.answers if a.outcome == "unanswered" and end_s - a.turn.end_s < _SOON_S
    ]
    return bool(late) or any(segment.end_s > end_s - 0.1 for segment in found.agent)

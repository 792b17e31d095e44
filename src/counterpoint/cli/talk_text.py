"""The part of the verb ``talk`` for models that speak a given text and can be interrupted."""

from dataclasses import asdict, fields, replace

import torch

from counterpoint.cli.running import Running
from counterpoint.cli.talk_options import TalkOptions
from counterpoint.data.making.interrupted import InterruptedSpeech
from counterpoint.errors import UserError
from counterpoint.evaluate.duplex.speaking import PUBLISHED
from counterpoint.evaluate.duplex.spoken_text import (
    THRESHOLD,
    SpokenText,
    left_out,
    prepare_speaker,
    speak_text,
    unlike_training,
)
from counterpoint.evaluate.duplex.turns import TurnTaking
from counterpoint.evaluate.report.answer import answer_title, observe_answer, write_answer
from counterpoint.evaluate.report.conversation_figure import Talk
from counterpoint.runtime.choices import FrameSampling, SpeechChoices
from counterpoint.runtime.load import Loaded
from counterpoint.speech.audio import channel_blocks, write_stereo
from counterpoint.streams.timeline import Timeline

_OF_TEXT = ("text_temperature", "text_top_k", "padding_bias")  # choices of models that write it
_ELSEWHERE = ("prompt", "voice", "pin", "tail", "lora")  # options of models that converse


def check_text(options: TalkOptions) -> None:
    """Refuse options that do not go together, before a model is loaded.

    Raises:
        UserError: The first such option.
    """
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise UserError(f"`--threshold` must be 0 to 1: got {options.threshold}.")
    if options.text is None:
        return
    name = conversing(options)
    if name:
        raise UserError(
            f"`--{name}` is for a model that converses: leave it out, or leave `--text` out."
        )


def conversing(options: TalkOptions) -> str:
    """Return the first option that was given and is for models that converse; "" for none."""
    usual = {field.name: field.default for field in fields(TalkOptions)}
    return next((name for name in _ELSEWHERE if getattr(options, name) != usual[name]), "")


def speaks_text(loaded: Loaded, options: TalkOptions) -> bool:
    """Return whether a model speaks a given text; refuse one that got none, or needs none.

    Raises:
        UserError: `--text` does not fit the model.
    """
    if options.text is None and options.threshold is not None:
        raise UserError("`--threshold` is for a model that speaks a text: give `--text`.")
    learned = loaded.run is not None and isinstance(loaded.run.data, InterruptedSpeech)
    if learned and options.text is None:
        raise UserError(
            f"`--text` must be given: {loaded.name} speaks a text and stops when it is interrupted."
        )
    if options.text is not None and not learned:
        raise UserError(
            "`--text` is for a model that speaks a given text, such as one of `counterpoint train "
            f"lslm_small`: {loaded.name} is a {type(loaded.system).__name__}. Leave it out."
        )
    return learned


def speak(
    options: TalkOptions,
    choices: SpeechChoices,
    running: Running,
    loaded: Loaded,
    user_words: Timeline,
) -> tuple[Talk, dict[str, str], int]:
    """Speak the text of the options while the recording is heard, and write all files.

    Returns:
        The conversation, its numbers, and how many samples were clipped.

    Raises:
        UserError: The text or the recording cannot be used, or a package is missing.
    """
    data = loaded.trained_by.data
    if not isinstance(data, InterruptedSpeech):
        raise AssertionError("`speaks_text` was asked before")
    for name in _OF_TEXT:
        if getattr(choices, name) is not None:
            flag = name.replace("_", "-")
            raise UserError(
                f"`--{flag}` is for a model that writes its own text: {loaded.name} reads it. "
                "Leave it out."
            )
    progress = running.progress()
    prepared = prepare_speaker(data, loaded.system, progress)
    rate = prepared.mels.sample_rate
    heard = torch.cat(list(channel_blocks(options.input, rate, options.channel)), 1)[0]
    threshold = THRESHOLD if options.threshold is None else options.threshold
    usual = loaded.chosen_sampling or FrameSampling(text=PUBLISHED, audio=PUBLISHED)
    sampling = choices.over(usual).audio
    with progress.doing("speaking"):
        said = speak_text(prepared, options.text or "", heard, threshold, sampling)
    for note in unlike_training(data, said.text) + left_out(said):
        progress.note(note)
    num_clipped = write_stereo(options.output, [said.sound], rate)
    title = answer_title(options.checkpoint, options.input, "hears")
    talk = observe_answer(title, options.output, rate, said.timeline().merge(user_words))
    numbers = _numbers(said, talk.found, threshold)
    # It speaks because it was told to, so no turn of the user waits for an answer.
    talk = replace(talk, found=replace(talk.found, answers=()))
    used = replace(options, threshold=threshold)
    settings = asdict(used) | asdict(choices) | {"device": running.device}
    write_answer(options.output, talk, numbers, settings)
    return talk, numbers, num_clipped


def _numbers(said: SpokenText, found: TurnTaking, threshold: float) -> dict[str, str]:
    """Return when and why the model fell silent, as text."""
    why = {
        "interrupted": f"it was interrupted (probability {said.stop_score:.2f} > {threshold:g})",
        "finished": "it took its text as finished",
        "no room": "its window was full",
    }
    numbers = {"spoke for": f"{said.said_s:.2f} s", "fell silent because": why[said.end]}
    onsets = [one.start_s for one in found.user if one.start_s <= said.said_s]
    if said.end != "interrupted":
        numbers["highest probability of a stop"] = f"{said.stop_score:.2f}"
    elif onsets:
        numbers["since the user began"] = f"{said.said_s - onsets[-1]:.2f} s"
    else:
        numbers["heard until then"] = "no sound of the user: this stop is false"
    return numbers

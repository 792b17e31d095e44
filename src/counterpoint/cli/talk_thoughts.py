"""The part of the verb ``talk`` for models that think while they listen, and write their answer."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor

from counterpoint.cli.running import Running
from counterpoint.cli.talk_options import TalkOptions
from counterpoint.cli.talk_text import conversing
from counterpoint.errors import UserError
from counterpoint.evaluate.report.answer import answer_title, observe_answer, write_words
from counterpoint.evaluate.report.conversation_figure import Talk
from counterpoint.evaluate.report.watched import thought_numbers, write_watched
from counterpoint.runtime.choices import SpeechChoices
from counterpoint.runtime.heard_words import ChunkedWords, recognised_by
from counterpoint.runtime.listening import ThoughtData, listen_to, with_answer_words
from counterpoint.runtime.load import Loaded
from counterpoint.speech.audio import channel_blocks, write_stereo
from counterpoint.speech.ears import ChunkEar
from counterpoint.speech.partials import PartialTranscriber
from counterpoint.streams.timeline import Timeline

_BEAM = 5  # misses fewer words than greedy decoding, which live captions have
_NOTE = (
    "The user is on the right; the agent writes, so its channel is silent. A chunk is used when "
    "its last sample has been heard, and the model then writes so many tokens a second as the "
    "numbers say. What is faint was not heard. Click the figure or a line to listen from there."
)


def thinks(loaded: Loaded) -> bool:
    """Return whether a model learned to think while it listens."""
    return loaded.run is not None and isinstance(loaded.run.data, ThoughtData)


def think(
    options: TalkOptions,
    choices: SpeechChoices,
    running: Running,
    loaded: Loaded,
    user_words: Timeline,
) -> tuple[Talk, dict[str, str], int]:
    """Let the model hear the recording and think, and write all files.

    Returns:
        The conversation, its numbers, and how many samples were clipped.

    Raises:
        UserError: An option is for other models, or the model cannot hear the recording.
    """
    _check(options, choices, loaded)
    data = loaded.trained_by.data
    if not isinstance(data, ThoughtData):
        raise AssertionError("`thinks` was asked before")
    ear = data.ear(loaded.system.layout, recognised_by(partial(PartialTranscriber, beam=_BEAM)))
    rate = ear.sample_rate
    began_s = time.perf_counter()
    with running.progress().doing("listening"):
        blocks = (block[0] for block in channel_blocks(options.input, rate, options.channel))
        heard = listen_to(loaded.system, data, ear, blocks, options.threshold)
    work_s = time.perf_counter() - began_s
    sound = _sound(options, rate, heard.end_s)
    num_clipped = write_stereo(options.output, sound, rate)
    title = answer_title(options.checkpoint, options.input, "hears")
    words = with_answer_words(heard).merge(user_words)
    talk = observe_answer(title, options.output, rate, words)
    # Its answers are written, so no turn of the user waits for one that sounds.
    talk = replace(talk, found=replace(talk.found, answers=()))
    numbers = _understood(ear, running) | thought_numbers(heard, data.tokens_per_s, work_s)
    settings = asdict(options) | {"device": running.device}
    write_words(options.output, words)
    write_watched(options.output, title, words, numbers, settings, _NOTE)
    return talk, numbers, num_clipped


def _understood(ear: ChunkEar, running: Running) -> dict[str, str]:
    """Return how many recognised words the model knows, and say so if they are few."""
    if not isinstance(ear, ChunkedWords):
        return {}
    told = ear.num_told
    known = ear.num_known
    if 2 * known <= told:
        with running.progress() as progress:
            found = f"{known} of {told} recognised words are known to the model"
            progress.note(f"{found if told else 'no word was heard'}: what it does means little.")
    return {"recognised words": f"{told} (known to the model, or like one: {known})"}


def _check(options: TalkOptions, choices: SpeechChoices, loaded: Loaded) -> None:
    """Refuse options of models that speak.

    Raises:
        UserError: The first such option.
    """
    name = "text" if options.text is not None else conversing(options)
    if name:
        raise UserError(
            f"`--{name}` is for a model that speaks: {loaded.name} thinks while it listens and "
            "writes its answer. Leave it out."
        )
    usual = asdict(SpeechChoices())
    chosen = [field for field, value in asdict(choices).items() if value != usual[field]]
    if chosen:
        raise UserError(
            f"`--{chosen[0].replace('_', '-')}` is for a model that draws what it says: "
            f"{loaded.name} writes the likeliest token. Leave it out."
        )


def _sound(options: TalkOptions, rate: int, end_s: float) -> Iterator[Tensor]:
    """Yield silence and the recording side by side, until both it and the answer are over."""
    num_left = math.ceil(end_s * rate)
    for block in channel_blocks(options.input, rate, options.channel):
        yield torch.cat((torch.zeros_like(block), block))
        num_left -= block.shape[1]
    yield torch.zeros(2, max(num_left, 0))

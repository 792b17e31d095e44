"""The verb ``demo``: the models that come with the package at work, in less than a minute."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap

from counterpoint.cli.running import Running
from counterpoint.cli.talk import answer
from counterpoint.cli.talk_options import TalkOptions
from counterpoint.data.text.documents import kjv
from counterpoint.evaluate.report.answer import answer_files
from counterpoint.evaluate.report.conversation_lines import finding_lines, transcript_lines
from counterpoint.evaluate.whole import price_of_another
from counterpoint.files import shown
from counterpoint.packages import MissingPackageError
from counterpoint.recipes.overrides import parse_options
from counterpoint.runtime.choices import SpeechChoices
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.shipped import FOLDER, READS, TALKS, WRITES
from counterpoint.runtime.threads import few_threads

_HELP = """Show what the three models that come with the package do.

The first hears a spoken question and answers it while it still listens; the second reads a text
aloud until it is interrupted; the third continues a sentence under two different wholes. Nothing is
downloaded; it takes less than a minute.

Example: counterpoint demo --folder heard
"""

_ALOUD = "i think five is the result so the heater must be low"
_OWN = "Ruth"
_OTHER = "Revelation"
_VERSES = 1
_SAMPLING = Sampling(temperature=0.5, seed=1)
_NUM_TICKS = 240
_COLUMN = 46


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """Options of ``demo``.

    Attributes:
        folder: Folder for the sound, the page and the picture.
    """

    folder: Path = Path("counterpoint_demo")


def main(arguments: Sequence[str]) -> int:
    """Run the verb with the words after it."""
    options = parse_options(DemoOptions, arguments, "demo", _HELP)
    options.folder.mkdir(parents=True, exist_ok=True)
    print("1. A model that listens while it speaks (8.3 million parameters)\n")
    _if_installed(_talk, options)
    print("2. A model that reads aloud until it is interrupted (1.7 million parameters)\n")
    _if_installed(_read_aloud, options)
    print("3. A language model that plans ahead (2.6 million parameters, King James Bible)\n")
    _write()
    return 0


def _if_installed(part: Callable[[DemoOptions], None], options: DemoOptions) -> None:
    """Show a part that needs further packages."""
    try:
        part(options)
    except MissingPackageError as missing:
        print(f"   This part is left out. {missing}\n", file=sys.stderr)


def _talk(options: DemoOptions) -> None:
    """Let the model answer the recording that comes with it."""
    question = FOLDER / TALKS / "question.flac"
    output = options.folder / "answer.wav"
    print(
        "   A user asks for something, hesitates in the middle of the sentence, and asks for\n"
        "   another thing while the model answers. The model, here the agent, hears the sound,\n"
        "   and decides for itself when to speak and when to be silent.\n"
    )
    given = TalkOptions(input=question, output=output, words=question.with_suffix(".json"))
    # The demo runs on a CPU: everyone has one, and there its words are known.
    talk, _, _ = answer(given, SpeechChoices(), Running(device="cpu"))
    for line in (*transcript_lines(talk.words), "", *finding_lines(talk.found)):
        print(f"   {line}".rstrip())
    files = answer_files(output)
    print(
        f"\n   listen:  {shown(output)}   the agent on the left, the user on the right\n"
        f"   look:    {shown(files['.html'])}  plays the sound under the picture\n"
        f"            {shown(files['.png'])}\n"
        "   yours:   counterpoint talk --input question.wav --output answer.wav --tail 5\n"
        "            It knows ten digits and a few devices, and one synthetic voice: see\n"
        f"            {FOLDER / TALKS / 'README.md'}\n"
    )


def _read_aloud(options: DemoOptions) -> None:
    """Let the model say a text until a person comes in."""
    output = options.folder / "reads.wav"
    print(
        f"   It is given the text {_ALOUD!r},\n"
        "   and a recording in which a person says its keyword, alexa, after a while. It hears\n"
        "   the recording while it speaks, and decides in every frame whether to go on.\n"
    )
    heard = FOLDER / READS / "heard.flac"
    given = TalkOptions(checkpoint=READS, input=heard, output=output, text=_ALOUD)
    _, numbers, _ = answer(given, SpeechChoices(), Running(device="cpu"))
    for name, number in numbers.items():
        print(f"   {name}: {number}")
    print(
        f"\n   listen:  {shown(output)}    the model on the left, what it hears on the right\n"
        f'   yours:   counterpoint talk {READS} --text "..." --input heard.wav --output said.wav\n'
        f"            It knows 95 words and one keyword: {FOLDER / READS / 'README.md'}\n"
    )


def _write() -> None:
    """Continue a text under its own whole and under another one, and print what each costs."""
    loaded = Running(device="cpu").load(WRITES)
    books = {document.title: document for document in kjv()}
    own, other = (books[title].sections[0] for title in (_OWN, _OTHER))
    prompt = "\n\n".join(own.paragraphs[:_VERSES]) + "\n\n"
    foreign = other.text()
    print(
        "   One network writes byte by byte. Another reads word by word and gives it a plan of\n"
        "   what comes next, the whole. The whole of another text can be used, too. Both\n"
        f"   chapters were held out from training. {own.heading} begins:\n"
    )
    for line in wrap(prompt, 2 * _COLUMN):
        print(f"   {line}")
    with few_threads(loaded.system):
        left, right = (
            "".join(loaded.write(prompt, _SAMPLING, _NUM_TICKS, whole_from=whole))
            for whole in (None, foreign)
        )
        paid, more = price_of_another(loaded.system, loaded.tokenizer, own.text(), foreign)
    heads = ("under its own whole it continues:", f"under the whole of {other.heading}:")
    print(f"\n   {heads[0]:{_COLUMN}}  {heads[1]}")
    for one, two in zip_longest(wrap(left, _COLUMN), wrap(right, _COLUMN), fillvalue=""):
        print(f"   {one:{_COLUMN}}  {two}")
    print(
        f"\n   What {own.heading} says costs {paid:.2f} bits a byte under its own whole and\n"
        f"   {more:.2f} under the other one, so the whole is used. The model is small and was\n"
        "   trained for minutes: it has learned how the Bible sounds, but not what it says.\n\n"
        f'   yours:   counterpoint generate {WRITES} --prompt "And God said" --temperature 0.5\n'
        f"            {FOLDER / WRITES / 'README.md'}"
    )

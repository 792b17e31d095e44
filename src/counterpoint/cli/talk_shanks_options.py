"""Options of the command ``talk shanks``."""

from dataclasses import dataclass
from pathlib import Path

from counterpoint.errors import UserError
from counterpoint.evaluate.report.answer import check_answer_path
from counterpoint.packages import check_modules
from counterpoint.runtime.cascade.parts import CascadeRules
from counterpoint.runtime.cascade.thinking import ClauseTrigger, FixedChunks
from counterpoint.speech.audio import verify_audio


@dataclass(frozen=True, kw_only=True, slots=True)
class ShanksOptions:
    """Options of ``talk shanks``.

    Attributes:
        input: The recording: WAV, FLAC or Ogg, of any sample rate.
        microphone: Talk through this machine's microphone; Ctrl-C ends the conversation.
        output: The WAV file to write; the other files get its name.
        llm: The language model: smollm2 (llama.cpp), tower (the same in this library's own code),
            the address of an OpenAI-compatible server, or a model's file or folder.
        llm_model: Name of the model at a server.
        tools: Tools that may be called: "orders", or a Python file with a list `TOOLS`.
        chunk_s: Seconds of speech after which the model thinks.
        clauses: Think when a clause is complete instead.
        interrupt_at: Score of the judge from which on it interrupts you; above 1 for never.
        silent: Do not think while listening: the baseline.
        after_listening: Call tools only after the user has finished: the baseline.
        check_calls: Make failed early calls anew at the end.
        channel: Channel of the recording, 0 is the left; by default the mean of all.
        tail: Longest silence, in seconds, that is heard after the recording.
        at_once: Do not wait for the time of the recording; times are what the engines took.
    """

    input: Path | None = None
    microphone: bool = False
    output: Path = Path("shanks.wav")
    llm: str = "smollm2"
    llm_model: str = ""
    tools: str = ""
    chunk_s: float = 4.0
    clauses: bool = False
    interrupt_at: float = 0.5
    silent: bool = False
    after_listening: bool = False
    check_calls: bool = False
    channel: int | None = None
    tail: float = 20.0
    at_once: bool = False


def check_shanks(options: ShanksOptions) -> None:
    """Refuse options that contradict each other, and a recording that cannot be read.

    Raises:
        UserError: The first such option.
    """
    if (options.input is None) != options.microphone:
        raise UserError("Give either `--input` or `--microphone`.")
    if not 0 <= options.tail <= 600 or not 0.5 <= options.chunk_s <= 60:
        raise UserError(
            "`--tail` must be 0 to 600 seconds, and `--chunk-s` 0.5 to 60: got "
            f"{options.tail} and {options.chunk_s}."
        )
    if not 0 < options.interrupt_at <= 2:
        raise UserError(
            "`--interrupt-at` must be above 0, and above 1 for never: got "
            f"{options.interrupt_at}. Scores are from 0 to 1."
        )
    if options.at_once and options.microphone:
        raise UserError("A microphone must be heard in real time: leave `--at-once` out.")
    for name in ("after_listening", "silent"):
        if getattr(options, name) and options.check_calls:
            raise UserError(
                f"`--check-calls` is for early calls, and `--{name.replace('_', '-')}` makes none: "
                "leave one of them out."
            )
    check_answer_path(options.output, [] if options.input is None else [options.input])
    check_modules("matplotlib")  # needed when the conversation is over
    if options.input is not None:
        verify_audio(options.input)


def rules_of(options: ShanksOptions) -> CascadeRules:
    """Return the rules of a conversation with these options."""
    return CascadeRules(
        trigger=ClauseTrigger() if options.clauses else FixedChunks(chunk_s=options.chunk_s),
        early_calls=not options.after_listening,
        checks_calls=options.check_calls,
        interrupt_at=options.interrupt_at,
    )

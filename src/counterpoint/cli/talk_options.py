"""Options of the verb ``talk`` for a trained model."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from counterpoint.runtime.load import WeightType
from counterpoint.runtime.shipped import TALKS


@dataclass(frozen=True, kw_only=True, slots=True)
class TalkOptions:
    """Options of ``talk``.

    Attributes:
        checkpoint: A checkpoint or run folder, or a folder of a published Moshi or PersonaPlex;
            by default the small model that comes with the package.
        input: The recording: WAV, FLAC or Ogg, of any sample rate.
        output: The WAV file to write; the other files get its name.
        text: What an LSLM says while it hears the recording.
        threshold: An LSLM falls silent above this score, by default 0.5. A SHANKS interrupts from
            this chance on; by default when an interruption is the likeliest that it can write.
        prompt: Role of the agent, as PersonaPlex reads it.
        voice: The agent's voice: a recording, or a .pt file.
        pin: Keep prompt and voice in a long talk.
        words: What is said in the recording (JSON with alignments or chunks), for the picture.
        channel: Channel of the recording to hear; 0 is left, by default the mean of all.
        tail: Seconds of silence that are heard after the recording.
        dtype: Type of the weights; by default the one in which they are stored or published.
        lora: Folder or file of adapters for the model.
    """

    input: Path
    output: Path
    checkpoint: tyro.conf.Positional[Path] = TALKS
    text: str | None = None
    threshold: float | None = None
    prompt: str = ""
    voice: Path | None = None
    pin: bool = False
    words: Path | None = None
    channel: int | None = None
    tail: float = 0.0
    dtype: WeightType | None = None
    lora: Path | None = None

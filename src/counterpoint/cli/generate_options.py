"""Options of the verb ``generate``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """Options of ``generate``.

    Attributes:
        checkpoint: A checkpoint or a run folder.
        prompt: Text to continue; an empty one starts a new text.
        prompt_file: File with the text to continue.
        chat: Treat the prompt as a message to a model that knows conversations, and let it answer.
        num_ticks: Largest number of ids to write.
        whole_from: Continue under the whole of this text, which is at least as long as the prompt.
        simultaneous: Run the whole tower in a process of its own (on a GPU, or compiled: a thread);
            needs a model with a lag of 1 or more.
        sliding: Accept a prompt that is longer than the model's window.
        compile: Compile the ticks first: half a minute, then a tiny model is 1.4 times as fast.
        weights: ``"int8"`` stores the matrices in 8 bits: faster if reading them takes the time.
    """

    checkpoint: tyro.conf.Positional[Path]
    prompt: str = ""
    prompt_file: Path | None = None
    chat: bool = False
    num_ticks: int = 400
    whole_from: str | None = None
    simultaneous: bool = False
    sliding: bool = False
    compile: bool = False
    weights: Literal["float32", "int8"] = "float32"

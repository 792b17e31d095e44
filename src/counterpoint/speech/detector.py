"""Detecting speech while it is heard, by Silero's network.

Source: Silero VAD 6 (package `silero-vad`, MIT), whose weights come with the package.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.packages import optional_module

DETECTOR_HZ = 16_000
DETECTOR_BLOCK = 512
"""Samples of a block, 32 ms: the network accepts no other length at this rate."""


class SpeechDetector:
    """Tells for each block of one channel how probable it is that someone speaks in it.

    Raises:
        MissingPackageError: The extra `offline` is not installed.
    """

    def __init__(self) -> None:
        silero: Any = optional_module("silero_vad")
        optional_module("onnxruntime")
        self._network: Any = silero.load_silero_vad(onnx=True)

    def __call__(self, block: Float[Tensor, " 512"]) -> float:
        """Return the probability of speech in the next block of the channel."""
        with torch.no_grad():
            return float(self._network(block.float(), DETECTOR_HZ))

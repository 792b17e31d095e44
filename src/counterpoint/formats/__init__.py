"""Foreign files: weights, configs and voices of published models, read and written."""

import torch

from counterpoint.errors import UserError
from counterpoint.formats.mimi import open_mimi
from counterpoint.speech.codec import Codec
from counterpoint.speech.codec2 import Codec2


def open_codec(name: str, num_codebooks: int, device: torch.device | str = "cpu") -> Codec:
    """The codec "codec2", or Mimi with the weights of a file.

    Args:
        name: Of the codec, or the path of Mimi's weights.
        num_codebooks: Of a frame of one speaker.
        device: Where Mimi computes.

    Raises:
        UserError: It cannot be used, or has other codebooks.
    """
    if name != "codec2":
        return open_mimi(name, num_codebooks, device)
    codec = Codec2()
    if len(codec.codebook_sizes) != num_codebooks:
        raise UserError(
            f"Codec2 has {len(codec.codebook_sizes)} codebooks: the model has {num_codebooks} for "
            "a speaker. Change the model's `audio`, or take another codec."
        )
    return codec

"""Differences of published programs of the Moshi family, as changes of a config.

They are for comparisons with these programs, and for continuing what they have trained. Their rule
for the starts of words is no part of a config: see `SpeechData.word_starts`.

Source: kyutai-labs/moshi-finetune (commit 2acc879) and NVIDIA/personaplex (commit 3428dfd).
"""

from dataclasses import replace

from counterpoint.errors import UserError
from counterpoint.systems.moshi import MoshiConfig

EPAD_ID = 0
"""Text id before a word, in the published vocabulary."""


def moshi_finetune_losses(
    config: MoshiConfig, *, epad_id: int = EPAD_ID, first_codebook: float = 100.0
) -> MoshiConfig:
    """Return the same model with the loss weights of `moshi-finetune`.

    - Both paddings of the text have the weight 0.5: the padding id, and the id before a word. Here
      the id before a word has the weight 1 by default.
    - The first predicted codebook has the weight ``first_codebook``, and all others have 1. If a
      model predicts both speakers (16 codebooks), these include the user's semantic codebook, which
      has the weight 100 here, as in the paper.

    Args:
        config: A model whose first audio stream has one codebook.
        epad_id: Text id before a word.
        first_codebook: Its ``first_codebook_weight_multiplier``; by default that of its example.

    Raises:
        UserError: The first audio stream has several codebooks, which share one weight here.
    """
    first, *others = config.audio
    if first.depth != 1:
        raise UserError(
            "The first audio stream must have one codebook, whose weight moshi-finetune raises: "
            f"{first.name!r} has {first.depth}. Split it into two streams."
        )
    return replace(
        config,
        audio=(
            replace(first, loss_weight=first_codebook),
            *(replace(stream, loss_weight=1.0) for stream in others),
        ),
        text_light_ids=(config.text_padding_id, epad_id),
        text_light_weight=0.5,
    )


def personaplex_window(config: MoshiConfig) -> MoshiConfig:
    """Return the same model with the window that NVIDIA's program has while it streams.

    Its ring of keys gives the oldest entry the position after the newest, so the causal mask hides
    it: of ``window`` frames the model reads all except the oldest. Offline, as in training, its
    window is complete.

    Raises:
        UserError: The window is a single frame.
    """
    window = config.temporal.window
    if window < 2:
        raise UserError(
            f"`temporal.window` must be at least 2 frames to be shortened: got {window}."
        )
    return replace(config, temporal=replace(config.temporal, window=window - 1))

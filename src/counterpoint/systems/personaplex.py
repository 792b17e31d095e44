"""PersonaPlex: Moshi that has been given a role and a voice before the conversation.

Source: PersonaPlex (arXiv:2602.06053) and its published code. The model is Moshi with both speakers
predicted; what is new is the hybrid prompt (`counterpoint.data.speech.opening`). The constants are
those of the published code; no published weight file was opened.
"""

from dataclasses import replace

from counterpoint.systems.moshi import MoshiConfig, moshi_7b, two_speakers


def personaplex_7b() -> MoshiConfig:
    """The published model: Moshi with 16 predicted codebooks, and the loss weights of its training.

    Acoustic codebooks weigh 1/50 of semantic ones, text padding 0.3.
    """
    return replace(moshi_7b(16), audio=two_speakers(7, semantic_weight=50.0), text_light_weight=0.3)

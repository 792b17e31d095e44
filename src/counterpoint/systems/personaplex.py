"""PersonaPlex: a Moshi that is given a role and a voice before the conversation.

Source: PersonaPlex (arXiv:2602.06053) and its published code. The model is a Moshi that predicts
    both
speakers; the hybrid prompt is new (`counterpoint.data.speech.opening`). The constants are those of
the published code; no published weight file was opened.
"""

from dataclasses import replace

from counterpoint.systems.moshi import MoshiConfig, moshi_7b, two_speakers


def personaplex_7b() -> MoshiConfig:
    """Return the published model: Moshi with 16 predicted codebooks, and its loss weights.

    It has 8.4B parameters. Acoustic codebooks have 1/50 of the weight of semantic ones, and text
    padding has the weight 0.3.
    """
    return replace(moshi_7b(16), audio=two_speakers(7, semantic_weight=50.0), text_light_weight=0.3)

"""The ids with which a speaker that can be interrupted ends its speech."""

from typing import NamedTuple

from counterpoint.errors import UserError
from counterpoint.speech.codec import Codec
from counterpoint.streams.spec import Layout, Role


class Ends(NamedTuple):
    """Ids of the first codebook that end the speech."""

    end: int
    interrupted: int


def end_ids(layout: Layout, codec: Codec) -> Ends:
    """Return the two ids with which the first codebook ends the speech.

    Raises:
        UserError: The codebooks of layout and codec do not fit, or those ids are missing.
    """
    sizes = tuple(size for stream in layout.by_role(Role.SPOKEN) for size in stream.sizes)
    first, *others = codec.codebook_sizes
    if sizes != (first + 2, *others) or codec.frame_rate_hz != layout.tick_hz:
        raise UserError(
            "A speaker that can be interrupted must have the codec's codebooks "
            f"{codec.codebook_sizes} at {codec.frame_rate_hz} Hz, with two more ids in the first: "
            f"got {sizes} at {layout.tick_hz} Hz."
        )
    return Ends(first, first + 1)

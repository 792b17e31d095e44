"""The inner monologue: timed words as one text id a frame, and back.

The pad id stands between words. The frame before a word holds the epad id ("end of padding") if it
holds nothing else.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams.spec import UNSET_ID
from counterpoint.streams.timeline import Event, Timeline

PAD_ID = 3
EPAD_ID = 0
"""Ids of Moshi; they are rows of its text embedding."""

WordStarts = Literal["exact", "moshi_finetune"]
"""The frame on which a word starts if its start lies on the edge of two frames.

- ``"exact"`` uses the product of time and frame rate as decimal numbers, so that 2.32 s at 12.5 Hz
  is frame 29, wherever the part of the recording begins.
- ``"moshi_finetune"`` rounds as `moshi-finetune` does: it subtracts the start time of the part,
  which its reader rounds to float32, and multiplies in float64. There 2.32 s is 28.999... and so
  frame 28, and a word that starts together with a part may lie before the part's first frame.
"""

_EDGE_FRAMES = 1e-6
"""Distance below the edge of a frame at which a float still counts as the edge itself."""


class Word(NamedTuple):
    """A spoken word and its times in seconds."""

    text: str
    start_s: float
    end_s: float


def write_monologue(
    words: Iterable[Word],
    encode: Callable[[str], Sequence[int]],
    frame_rate_hz: float,
    num_frames: int,
    *,
    first_frame: int = 0,
    pad_id: int = PAD_ID,
    epad_id: int = EPAD_ID,
    word_starts: WordStarts = "exact",
) -> Int[Tensor, " T"]:
    """Put the ids of words on the frames in which the words are spoken.

    - A word starts on the frame that contains its start, ``floor(start_s * frame_rate_hz)``, and
      takes one frame for each of its ids.
    - If a word starts before the word before it is complete, it replaces the rest of that word. If
      several words start on one frame, the last one in order of time is written. This holds for
      words without ids, too.
    - ``epad_id`` stands on the frame before a word if that frame is otherwise padding. A word on
      the first frame has none.
    - Words that do not end after they start or that start before the first frame are left out, and
      so are ids beyond the last frame.

    Args:
        words: Words in any order; words with the same start keep their order.
        encode: Returns the ids of one word, stripped of blanks around it.
        frame_rate_hz: Frames a second.
        num_frames: The number of frames T.
        first_frame: Number of the recording's frame that comes first, if only a part is wanted.
        pad_id: Id of a frame without text.
        epad_id: Id before a word.
        word_starts: Rule for starts on the edge of two frames.

    Returns:
        One id for each frame.

    Raises:
        UserError: A time is not a finite number.

    Source: Moshi (arXiv:2410.00037), section 3.4.4, implemented like the interleaver of
    `moshi-finetune` with ``keep_and_shift=False``. Deviation of both from the paper, which moves a
    word on the first frame one frame later and puts epad before it. Deviation from both, unless
    ``word_starts`` is ``"moshi_finetune"``: starts on the edge of two frames are not rounded down.
    """
    ids = [pad_id] * num_frames
    starts = _starts(words, frame_rate_hz, first_frame, num_frames, word_starts)
    for start, stop, encoded in _placed(starts, encode, num_frames):
        if encoded and start and ids[start - 1] == pad_id:
            ids[start - 1] = epad_id
        ids[start:stop] = encoded[: stop - start]
    return torch.tensor(ids, dtype=torch.long)


class Written(NamedTuple):
    """How many words a monologue holds.

    Attributes:
        whole: Number of words with all their ids.
        cut: Number of words that lost ids to the next word or to the end of the part.
    """

    whole: int
    cut: int


def count_written(
    words: Iterable[Word],
    encode: Callable[[str], Sequence[int]],
    frame_rate_hz: float,
    num_frames: int,
    *,
    first_frame: int = 0,
    word_starts: WordStarts = "exact",
) -> Written:
    """Count the words that `write_monologue` writes for the same arguments; others are left out."""
    starts = _starts(words, frame_rate_hz, first_frame, num_frames, word_starts)
    whole = cut = 0
    for start, stop, encoded in _placed(starts, encode, num_frames):
        whole += 0 < len(encoded) <= stop - start
        cut += len(encoded) > stop - start
    return Written(whole, cut)


def read_monologue(
    ids: Int[Tensor, " T"],
    decode: Callable[[Sequence[int]], str],
    frame_rate_hz: float,
    *,
    starts_word: Callable[[int], bool],
    stream: str = "text",
    pad_id: int = PAD_ID,
    epad_id: int = EPAD_ID,
) -> Timeline:
    """Return the timed words of a monologue as events of kind "word".

    A word ends with the frame of its last id, because the ids do not tell how long it lasts. Words
    that were cut short by the next word stay so.

    Args:
        ids: One id a frame; pad, epad and `UNSET_ID` belong to no word.
        decode: Returns the text of ids.
        frame_rate_hz: Frames a second.
        starts_word: Tells whether an id begins a word if the frame before it holds an id, too. For
            SentencePiece: whether its piece begins with U+2581.
        stream: Name of the stream in the events.
        pad_id: Id of a frame without text.
        epad_id: Id before a word.
    """
    events = []
    first = 0
    run = list[int]()
    for frame, token in enumerate([*ids.tolist(), pad_id]):
        is_padding = token in (pad_id, epad_id, UNSET_ID)
        if run and (is_padding or starts_word(token)):
            start_s = first / frame_rate_hz
            end_s = frame / frame_rate_hz
            text = decode(run).strip()
            events.append(
                Event(start_s=start_s, end_s=end_s, stream=stream, kind="word", text=text)
            )
            run = []
        if not is_padding:
            first = first if run else frame
            run.append(token)
    return Timeline(events=tuple(events))


def _starts(
    words: Iterable[Word], frame_rate_hz: float, first_frame: int, num_frames: int, rule: WordStarts
) -> list[tuple[int, str]]:
    """Return frame and text of each word with a duration, in order of time, near the part."""
    starts: list[tuple[int, str]] = []
    part_s = torch.tensor(first_frame / frame_rate_hz, dtype=torch.float32).item()
    part_end_s = part_s + num_frames / frame_rate_hz
    for word in sorted(words, key=lambda word: word.start_s):
        if not (math.isfinite(word.start_s) and math.isfinite(word.end_s)):
            raise UserError(
                f"Words must have finite times: got {word.start_s} to {word.end_s} s for "
                f"{word.text!r}. Align the recording again."
            )
        if rule == "exact":
            lasts = word.start_s < word.end_s
            frame = math.floor(word.start_s * frame_rate_hz + _EDGE_FRAMES) - first_frame
        else:
            since_s = word.start_s - part_s
            lasts = since_s < word.end_s - part_s and word.start_s < part_end_s
            frame = math.floor(since_s * frame_rate_hz)
        if lasts:
            starts.append((frame, word.text))
    return starts


def _placed(
    starts: Iterable[tuple[int, str]], encode: Callable[[str], Sequence[int]], num_frames: int
) -> list[tuple[int, int, list[int]]]:
    """Return first frame, stop frame and ids of each word that is not replaced at once."""
    placed: list[tuple[int, list[int]]] = []
    for start, text in starts:
        if 0 <= start < num_frames:
            if placed and placed[-1][0] == start:
                placed.pop()
            placed.append((start, list(encode(text.strip()))))
    next_starts = [*(start for start, _ in placed), num_frames][1:]
    return [
        (start, min(start + len(encoded), next_start), encoded)
        for (start, encoded), next_start in zip(placed, next_starts, strict=True)
    ]

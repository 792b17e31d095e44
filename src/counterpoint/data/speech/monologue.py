"""The inner monologue: timed words as one text id a frame, and back.

Between words stands the pad id; the frame before a word, if nothing else is there, holds the epad
id ("end of padding").
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
"""Moshi's ids; they are rows of its text embedding."""

WordStarts = Literal["exact", "moshi_finetune"]
"""Which frame a word starts on when its start lies on the edge of two frames.

- ``"exact"`` takes the product of time and frame rate as the decimal numbers mean it, so that
  2.32 s at 12.5 Hz is frame 29, wherever the part of the recording begins.
- ``"moshi_finetune"`` rounds as `moshi-finetune` does: it subtracts the time at which the part
  begins, which its reader rounds to float32, and multiplies in float64. There 2.32 s is 28.999...
  and so frame 28, and a word that starts with a part may be before its first frame.
"""

_EDGE_FRAMES = 1e-6
"""How far below the edge of a frame a float may be that stands for the edge itself."""


class Word(NamedTuple):
    """A spoken word and when it was spoken."""

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
    """Put the ids of words on the frames where the words are spoken.

    - A word starts on the frame that holds its start, ``floor(start_s * frame_rate_hz)``, and takes
      one frame for each of its ids.
    - A word that starts before the one before it is written replaces the rest of that one. Of
      several that start on one frame, the last in order of time is written. So it is with words
      without ids, too.
    - ``epad_id`` stands on the frame before a word if that frame is otherwise padding. A word on
      the first frame has none.
    - Left out are words that do not end after they start or start before the first frame, and ids
      beyond the last frame.

    Args:
        words: Words in any order; those that start at the same time keep theirs.
        encode: Ids of one word, stripped of blanks around it.
        frame_rate_hz: Frames a second.
        num_frames: T.
        first_frame: Frame of the recording that comes first, where only a part of it is wanted.
        pad_id: Stands where nothing is said.
        epad_id: Stands before a word.
        word_starts: What holds for starts on the edge of two frames.

    Raises:
        UserError: A time is not a finite number.

    Source: Moshi (arXiv:2410.00037), section 3.4.4, as the interleaver of `moshi-finetune` does it
    (``keep_and_shift=False``). Deviation from the paper, shared with that: the paper moves a word
    on the first frame one frame later and puts epad before it. Deviation from both, unless
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
    """What became of words in a monologue.

    Attributes:
        whole: Words with all their ids.
        cut: Words of which the next one, or the end of the part, took ids away.
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
    """How many words `write_monologue` writes, of the same arguments; all others are left out."""
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
    """Timed words of a monologue: events of kind "word".

    A word ends with the frame of its last id: how long it lasts is not written in the ids. Words
    that were cut short by the next one stay so.

    Args:
        ids: One a frame; pad, epad and `UNSET_ID` are no part of a word.
        decode: Text of ids.
        frame_rate_hz: Frames a second.
        starts_word: Whether an id begins a word where the frame before holds an id, too. For
            SentencePiece: its piece begins with U+2581.
        stream: Name of the stream in the events.
        pad_id: Stands where nothing is said.
        epad_id: Stands before a word.
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
    """Frame and text of each word that lasts, in order of time; others than the part's may come."""
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
    """First frame, frame to stop before, and ids of each word that is not replaced at once."""
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

"""Whether a file of sound is whole: what its head tells of its length against what is there.

libsndfile believes the head: it stops where the head says and takes a file that was cut for a
shorter one, both without a word. So each kind of file is walked here from its first byte to its
last before libsndfile reads it. Where the length was never written, as by a recorder that was
killed or wrote to a pipe, the sound goes to the end of the file, and `Whole` says what libsndfile
must read in place of the head's number.

Sources: RIFF and RF64 (EBU Tech 3306), Sony Wave64, AIFF-C, CAF, Sun AU, NIST SPHERE, FLAC (RFC
9639), Ogg (RFC 3533), MPEG audio (ISO 11172-3) with the tags of Xing and LAME.
"""

import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

KINDS = "WAV, RF64, W64, AIFF, AU, CAF, NIST, FLAC, Ogg or MP3"

_UNWRITTEN_32 = 0x7FFFF000
"""From here on a size of 32 bits stands for "not known": programs write 2^31 less a page, 2^31,
2^32 - 1, where they write to a pipe."""

_UNWRITTEN_64 = 1 << 62

_PLAIN = (1, 3, 6, 7, 0xFFFE)
"""Numbers of WAV formats without blocks: integers, floats, A-law, mu-law; and "see elsewhere"."""

_MOST_PADDING = 4096  # samples of two blocks of any format

_Bytes = bytes | mmap.mmap


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """How a whole file is to be read.

    Attributes:
        num_frames: Samples of each channel as its head tells; ``None`` where it does not, or where
            libsndfile's own number is that of the head.
        padding_frames: Samples that may come behind these and are none: the last block is filled.
        patches: Bytes to read in place of those in the file, by their offset.
        prefix: Bytes to read before the first one of the file.
        first: Byte of the file to begin with.
    """

    num_frames: int | None = None
    padding_frames: int = 0
    patches: Mapping[int, bytes] = field(default_factory=dict)
    prefix: bytes = b""
    first: int = 0


class DamagedError(Exception):
    """Why a file is not whole; whoever reads it names it."""


class _Form(NamedTuple):
    """How chunks lie in a file: an id, a size, the content; ``pad`` is what they are aligned to."""

    id_bytes: int
    size: str
    counts_head: bool
    pad: int
    first: int
    sound: bytes
    extra: int
    """Bytes of the chunk of the sound that stand before the sound."""


_RIFF = _Form(4, "<I", False, 2, 12, b"data", 0)
_AIFF = _Form(4, ">I", False, 2, 12, b"SSND", 8)
_CAF = _Form(4, ">Q", False, 1, 8, b"data", 4)
_W64 = _Form(16, "<Q", True, 8, 40, b"data", 0)


def check_whole(path: Path) -> Whole:
    """How a file is to be read.

    Raises:
        DamagedError: It is of no kind that is known here, it was cut, or its head tells another
            length than it has. The message is the reason alone.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise DamagedError("it has no bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _check(content)


def _check(content: _Bytes) -> Whole:
    for letters, check in _KINDS:
        if content[: len(letters)] == letters:
            return check(content)
    start = _behind_id3(content)
    if content[start : start + 4] == b"fLaC":
        return _flac(content, start)
    if _mpeg_frame(content, start) is not None:
        return _mp3(content, start)
    raise DamagedError(f"it is none of {KINDS}")


# ------------------------------------------------------------------------------ files of chunks


def _riff(content: _Bytes) -> Whole:
    """A WAV file; in an RF64 one the size stands in the chunk ds64."""
    sizes: int | None = None
    if content[:4] == b"RF64":
        if content[12:16] != b"ds64" or len(content) < 44:
            raise DamagedError("its chunk ds64, which tells its length, is missing")
        sizes = 28
    return _chunks(content, _RIFF, sizes)


def _rifx(content: _Bytes) -> Whole:
    return _chunks(content, _RIFF._replace(size=">I"))


def _aiff(content: _Bytes) -> Whole:
    if content[8:12] not in (b"AIFF", b"AIFC"):
        raise DamagedError(f"it is none of {KINDS}")
    return _chunks(content, _AIFF)


def _caf(content: _Bytes) -> Whole:
    return _chunks(content, _CAF)


def _w64(content: _Bytes) -> Whole:
    return _chunks(content, _W64)


def _chunks(content: _Bytes, form: _Form, long_size: int | None = None) -> Whole:
    """Walk the chunks; ``long_size`` is where 64 bits tell the size of the sound."""
    place = form.first
    head = form.id_bytes + struct.calcsize(form.size)
    found = dict[bytes, int]()
    while place + head <= len(content):
        name = bytes(content[place : place + 4])
        size = _size_at(content, form, place)
        if name == form.sound:
            format_ = _format(content, form, found)
            whole = _sound(content, form, place, long_size, format_.num_bytes)
            if whole.patches or format_.num_frames is None:
                return whole
            return Whole(num_frames=format_.num_frames, padding_frames=_MOST_PADDING)
        if place + head + size <= len(content):
            found[name] = place + head
        place += head + size + -size % form.pad
    raise DamagedError(f"its chunk {form.sound.decode()!r}, which holds the sound, is missing")


class _Format(NamedTuple):
    """How the sound of a file of chunks is written.

    Attributes:
        num_bytes: Bytes of the samples of all channels at one time; 1 where they come in blocks.
        num_frames: Samples of each channel; ``None`` where the size of the sound tells them.
    """

    num_bytes: int = 1
    num_frames: int | None = None


def _format(content: _Bytes, form: _Form, found: Mapping[bytes, int]) -> _Format:
    """What the chunks before the sound say; ``found`` tells where the content of each begins."""
    if form.sound == b"SSND" and b"COMM" in found:
        channels, _, bits = struct.unpack_from(">hIh", content, found[b"COMM"])
        is_plain = content[8:12] == b"AIFF"
        return _Format(max(channels * (-(-bits // 8)), 1) if is_plain else 1)
    if form is _CAF and b"desc" in found:
        return _Format(max(struct.unpack_from(">I", content, found[b"desc"] + 16)[0], 1))
    if b"fmt " not in found:
        return _Format()
    order = form.size[0]
    kind, block = struct.unpack_from(f"{order}H10xH", content, found[b"fmt "])
    if kind in _PLAIN:
        return _Format(max(block, 1))
    if b"fact" not in found:
        return _Format()
    count = struct.unpack_from(f"{order}I", content, found[b"fact"])[0]
    return _Format(num_frames=count or None)


def _sound(
    content: _Bytes, form: _Form, place: int, long_size: int | None, frame_bytes: int
) -> Whole:
    """Compare the size of the sound with what is there, and with what comes behind it."""
    head = form.id_bytes + struct.calcsize(form.size)
    begin = place + head
    size = _size_at(content, form, place)
    room = len(content) - begin
    field_place = place + form.id_bytes
    field_form = form.size
    if long_size is not None and size == 0xFFFFFFFF:
        size = int(struct.unpack_from("<Q", content, long_size)[0])
        field_place = long_size
        field_form = "<Q"
    limit = _UNWRITTEN_32 if field_form[1] == "I" else _UNWRITTEN_64
    is_empty = size in (0, form.extra)
    unwritten = size >= limit and size > room
    if unwritten or (is_empty and not _ends_in_chunks(content, form, begin + size)):
        written = room + (head if form.counts_head else 0)
        largest = (1 << 8 * struct.calcsize(field_form)) - 1
        return Whole(patches={field_place: struct.pack(field_form, min(written, largest))})
    if size > room:
        raise DamagedError(
            f"its head tells {size} bytes of sound, and {room} are there: it was cut"
        )
    if size and (size - form.extra) % frame_bytes:
        raise DamagedError(
            f"its head tells {size - form.extra} bytes of sound in samples of {frame_bytes} bytes"
        )
    padding = content[begin + size : begin + size + -size % form.pad]
    if any(padding) or not _ends_in_chunks(content, form, begin + size + len(padding)):
        raise DamagedError(
            f"its head tells {size} bytes of sound, and behind them are {room - size} that are "
            "nothing that belongs there"
        )
    return Whole()


def _ends_in_chunks(content: _Bytes, form: _Form, place: int) -> bool:
    """Whether nothing is behind a place but whole chunks with names of letters, and padding."""
    head = form.id_bytes + struct.calcsize(form.size)
    while place < len(content):
        rest = content[place : place + head]
        if len(rest) < head:
            return not any(rest)
        if not all(32 <= letter < 127 for letter in rest[:4]):
            return False
        size = _size_at(content, form, place)
        place += head + size + -size % form.pad
        if place > len(content) + form.pad:
            return False
    return True


def _size_at(content: _Bytes, form: _Form, place: int) -> int:
    """Size of the content of the chunk at a place."""
    size = int(struct.unpack_from(form.size, content, place + form.id_bytes)[0])
    if not form.counts_head:
        return size
    return max(size - form.id_bytes - struct.calcsize(form.size), 0)


def _au(content: _Bytes) -> Whole:
    order = ">" if content[:4] == b".snd" else "<"
    if len(content) < 24:
        raise DamagedError("its head was cut")
    begin, size = struct.unpack_from(f"{order}II", content, 4)
    room = len(content) - begin
    if size == 0xFFFFFFFF or (not size and room > 0):
        return Whole(patches={8: struct.pack(f"{order}I", 0xFFFFFFFF)})
    if size != room:
        raise DamagedError(f"its head tells {size} bytes of sound, and {room} are there")
    return Whole()


def _nist(content: _Bytes) -> Whole:
    """A head of lines such as ``sample_count -i 80000``."""
    try:
        head = int(content[8:16])
        lines = content[16:head].decode("ascii").split("\n")
        fields = {parts[0]: parts[2] for line in lines if len(parts := line.split()) == 3}
        count = int(fields["sample_count"])
        width = int(fields["channel_count"]) * int(fields["sample_n_bytes"])
    except (ValueError, KeyError) as error:
        raise DamagedError("its head does not tell its length") from error
    if count * width != len(content) - head:
        raise DamagedError(
            f"its head tells {count * width} bytes of sound, and {len(content) - head} are there"
        )
    return Whole()


# ------------------------------------------------------------------------------ files of frames


def _flac(content: _Bytes, start: int) -> Whole:
    """Its reader counts to the end where the head's 36 bits of the length are 0."""
    place = start + 21
    if len(content) < start + 42:
        raise DamagedError("its head was cut")
    count = int.from_bytes(content[place : place + 5]) & (1 << 36) - 1
    patch = bytes((content[place] & 0xF0,)) + bytes(4)
    return Whole(num_frames=count or None, patches={place: patch})


def _ogg(content: _Bytes) -> Whole:
    """One stream of pages, from the one that begins it to the one that ends it."""
    place = 0
    number = 0
    serial = b""
    flags = 0
    while place < len(content):
        if content[place : place + 4] != b"OggS" or place + 27 > len(content):
            raise DamagedError(f"at byte {place} is no page of Ogg: it was cut or is damaged")
        flags = content[place + 5]
        found = bytes(content[place + 14 : place + 18])
        if (flags & 2 != 0) != (number == 0) or (number and found != serial):
            raise DamagedError("it holds more than one stream. Take the one to keep")
        serial = found
        if int.from_bytes(content[place + 18 : place + 22], "little") != number:
            raise DamagedError(f"its page {number} is missing")
        table = content[place + 27 : place + 27 + content[place + 26]]
        place += 27 + len(table) + sum(table)
        number += 1
    if place > len(content) or not flags & 4:
        raise DamagedError("its last page, which tells its length, is missing: it was cut")
    return Whole()


class _Frame(NamedTuple):
    """A frame of MPEG audio, layer III."""

    num_bytes: int
    num_samples: int
    bit_rate: int
    tag: int
    """Offset of a Xing tag, if the frame has one."""


_MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_MPEG_1_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG_2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def _mpeg_frame(content: _Bytes, place: int) -> _Frame | None:
    """The frame at a place; ``None`` where there is none."""
    if place + 4 > len(content):
        return None
    word = int.from_bytes(content[place : place + 4])
    version = word >> 19 & 3
    kbits = word >> 12 & 15
    rate = word >> 10 & 3
    is_layer_3 = word >> 21 == 0x7FF and word >> 17 & 3 == 1
    if not is_layer_3 or version == 1 or kbits in (0, 15) or rate == 3:
        return None
    is_mono = word >> 6 & 3 == 3
    bit_rate = 1000 * (_MPEG_1_KBITS if version == 3 else _MPEG_2_KBITS)[kbits]
    num_samples = 1152 if version == 3 else 576
    num_bytes = num_samples // 8 * bit_rate // _MPEG_RATES[version][rate] + (word >> 9 & 1)
    side_bytes = (17 if is_mono else 32) if version == 3 else (9 if is_mono else 17)
    return _Frame(num_bytes, num_samples, bit_rate, 4 + side_bytes)


def _mpeg_frames(content: _Bytes, place: int) -> Iterator[tuple[int, _Frame]]:
    """Place and frame of all frames; raises where something else is between or behind them."""
    while (frame := _mpeg_frame(content, place)) is not None:
        if place + frame.num_bytes > len(content):
            raise DamagedError("its last frame is not complete: it was cut")
        yield place, frame
        place += frame.num_bytes
    rest = content[place:]
    is_tag = rest.startswith((b"TAG", b"APETAGEX", b"LYRICSBEGIN"))
    if not is_tag and any(rest):
        raise DamagedError(f"at byte {place} is no frame of MP3: it is damaged")


def _mp3(content: _Bytes, start: int) -> Whole:
    """All frames, counted; where no tag tells their number, one is read before them."""
    frames = _mpeg_frames(content, start)
    place, first = next(frames)
    tagged = _tagged_frames(content, place, first)
    count = 1
    bit_rates = {first.bit_rate}
    for _, frame in frames:
        count += 1
        bit_rates.add(frame.bit_rate)
    if tagged is not None:
        # Encoders disagree whether the frame of the tag counts.
        if tagged not in (count, count - 1):
            raise DamagedError(f"its head tells {tagged} frames, and {count - 1} are there")
        return Whole()
    if len(bit_rates) > 1:
        raise DamagedError(
            "it is an MP3 of varying bit rate whose first frame, the tag, is missing"
        )
    tag = bytearray(first.num_bytes)
    tag[:4] = content[place : place + 4]
    tag[first.tag : first.tag + 12] = b"Info" + struct.pack(">II", 1, count)
    return Whole(prefix=bytes(tag), first=place)


def _tagged_frames(content: _Bytes, place: int, first: _Frame) -> int | None:
    """The number of frames that a tag in the first one tells."""
    tag = place + first.tag
    if content[tag : tag + 4] in (b"Xing", b"Info"):
        flags, count = struct.unpack_from(">II", content, tag + 4)
        return int(count) if flags & 1 else None
    if content[place + 36 : place + 40] == b"VBRI":
        return int(struct.unpack_from(">I", content, place + 50)[0])
    return None


def _behind_id3(content: _Bytes) -> int:
    """Where the first byte behind tags of ID3v2, and zeros behind these, is."""
    place = 0
    while content[place : place + 3] == b"ID3" and place + 10 <= len(content):
        size = 0
        for byte in content[place + 6 : place + 10]:
            size = size << 7 | byte & 0x7F
        has_footer = content[place + 5] & 0x10
        place += 10 + size + (10 if has_footer else 0)
        while place < len(content) and not content[place]:
            place += 1
    return place


_KINDS: tuple[tuple[bytes, Callable[[_Bytes], Whole]], ...] = (
    (b"RIFF", _riff),
    (b"RF64", _riff),
    (b"RIFX", _rifx),
    (b"FORM", _aiff),
    (b"caff", _caf),
    (b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00", _w64),
    (b".snd", _au),
    (b"dns.", _au),
    (b"NIST_1A", _nist),
    (b"OggS", _ogg),
)
"""Which files begin with which letters; the others may begin with a tag."""

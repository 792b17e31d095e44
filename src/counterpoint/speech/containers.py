"""Checks that an audio file is complete: the length in its header against its content.

libsndfile trusts the header: it stops where the header says, and treats a truncated file as a
shorter one, both silently. Therefore each kind of file is walked here from its first byte to its
last before libsndfile reads it. If the length was never written, because a recorder was killed or
wrote to a pipe, the sound extends to the end of the file, and `Whole` says what libsndfile must
read in place of the header's number.

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

_PLAIN = (1, 3, 6, 7, 0xFFFE)
"""WAV formats without blocks: integers, floats, A-law, mu-law, and "see elsewhere"."""

_MOST_PADDING = 4096  # samples of two blocks of any format

_Bytes = bytes | mmap.mmap


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """How a complete file must be read.

    Attributes:
        num_frames: Samples of each channel according to the header; ``None`` if the header does not
            tell, or if libsndfile's own number is that of the header.
        padding_frames: Number of padding samples that may follow these to fill the last block.
        patches: Bytes to read in place of those in the file, by their offset.
        prefix: Bytes to read before the first byte of the file.
        first: Byte of the file to begin with.
    """

    num_frames: int | None = None
    padding_frames: int = 0
    patches: Mapping[int, bytes] = field(default_factory=dict)
    prefix: bytes = b""
    first: int = 0


class DamagedError(Exception):
    """The reason why a file is not complete; the reader adds its name."""


class _Form(NamedTuple):
    """Layout of chunks in a file: an id, a size, the content; ``pad`` is their alignment."""

    id_bytes: int
    size: str
    counts_head: bool
    pad: int
    first: int
    sound: bytes
    extra: int
    """Number of bytes before the sound in its chunk."""


_RIFF = _Form(4, "<I", False, 2, 12, b"data", 0)
_AIFF = _Form(4, ">I", False, 2, 12, b"SSND", 8)
_CAF = _Form(4, ">Q", False, 1, 8, b"data", 4)
_W64 = _Form(16, "<Q", True, 8, 40, b"data", 0)


def check_whole(path: Path) -> Whole:
    """Check a file, and return how it must be read.

    Raises:
        DamagedError: It is of no known kind, it was truncated, or its header declares a length that
            it does not have. The message is only the reason.
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
    """Check a WAV file; in an RF64 file the size is in the chunk ds64."""
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
    """Walk the chunks; ``long_size`` is the place of a 64-bit size of the sound."""
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
    """The format of the sound in a file of chunks.

    Attributes:
        num_bytes: Bytes of the samples of all channels at one time; 1 if they come in blocks.
        num_frames: Samples of each channel; ``None`` if the size of the sound tells them.
    """

    num_bytes: int = 1
    num_frames: int | None = None


def _format(content: _Bytes, form: _Form, found: Mapping[bytes, int]) -> _Format:
    """Return the format that the chunks before the sound tell; ``found`` has their offsets."""
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
    """Compare the size of the sound with the bytes that exist, and with what follows them."""
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
    num_bits = 8 * struct.calcsize(field_form)
    is_empty = size in (0, form.extra)
    unwritten = size > room and _is_unwritten(size, num_bits)
    if unwritten or (is_empty and not _ends_in_chunks(content, form, begin + size)):
        written = room + (head if form.counts_head else 0)
        largest = (1 << num_bits) - 1
        return Whole(patches={field_place: struct.pack(field_form, min(written, largest))})
    if size > room:
        raise DamagedError(
            f"its header declares {size} bytes of sound, and {room} are there: it was cut"
        )
    if size and (size - form.extra) % frame_bytes:
        raise DamagedError(
            f"its header declares {size - form.extra} bytes of sound in samples of {frame_bytes} "
            "bytes"
        )
    padding = content[begin + size : begin + size + -size % form.pad]
    if any(padding) or not _ends_in_chunks(content, form, begin + size + len(padding)):
        raise DamagedError(
            f"its header declares {size} bytes of sound, and {room - size} bytes that "
            "do not belong there follow"
        )
    return Whole()


def _is_unwritten(size: int, num_bits: int) -> bool:
    """Return whether a size means "not known".

    Programs that write to a pipe set 2^31, or as much less as a page; or 2^32 - 1, less what the
    header takes. Other large sizes come from a header that lost bytes, before noise.
    """
    half = 1 << num_bits - 1
    return half - 0x1000 <= size <= half or size >= 2 * half - 0x10000


def _ends_in_chunks(content: _Bytes, form: _Form, place: int) -> bool:
    """Return whether only complete chunks with names of letters, and padding, follow a place."""
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
    """Return the size of the content of the chunk at a place."""
    size = int(struct.unpack_from(form.size, content, place + form.id_bytes)[0])
    if not form.counts_head:
        return size
    return max(size - form.id_bytes - struct.calcsize(form.size), 0)


def _au(content: _Bytes) -> Whole:
    order = ">" if content[:4] == b".snd" else "<"
    if len(content) < 24:
        raise DamagedError("its header was cut")
    begin, size = struct.unpack_from(f"{order}II", content, 4)
    room = len(content) - begin
    if size == 0xFFFFFFFF or (not size and room > 0):
        return Whole(patches={8: struct.pack(f"{order}I", 0xFFFFFFFF)})
    if size != room:
        raise DamagedError(f"its header declares {size} bytes of sound, and {room} are there")
    return Whole()


def _nist(content: _Bytes) -> Whole:
    """Check a file whose header has lines such as ``sample_count -i 80000``."""
    try:
        head = int(content[8:16])
        lines = content[16:head].decode("ascii").split("\n")
        fields = {parts[0]: parts[2] for line in lines if len(parts := line.split()) == 3}
        count = int(fields["sample_count"])
        width = int(fields["channel_count"]) * int(fields["sample_n_bytes"])
    except (ValueError, KeyError) as error:
        raise DamagedError("its header does not tell its length") from error
    if count * width != len(content) - head:
        raise DamagedError(
            f"its header declares {count * width} bytes of sound, and {len(content) - head} are "
            "there"
        )
    return Whole()


# ------------------------------------------------------------------------------ files of frames


def _flac(content: _Bytes, start: int) -> Whole:
    """Check a FLAC file; its reader counts to the end if the header's 36 bits of length are 0."""
    place = start + 21
    if len(content) < start + 42:
        raise DamagedError("its header was cut")
    count = int.from_bytes(content[place : place + 5]) & (1 << 36) - 1
    patch = bytes((content[place] & 0xF0,)) + bytes(4)
    return Whole(num_frames=count or None, patches={place: patch})


def _ogg(content: _Bytes) -> Whole:
    """Check one stream of pages, from its first to its last page."""
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
    """Return the frame at a place; ``None`` if there is none."""
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
    """Yield place and frame of all frames; refuse anything else between or after them."""
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
    """Check and count all frames; if no tag tells their number, a tag is read before them."""
    frames = _mpeg_frames(content, start)
    place, first = next(frames)
    tagged = _tagged_frames(content, place, first)
    count = 1
    bit_rates = {first.bit_rate}
    for _, frame in frames:
        count += 1
        bit_rates.add(frame.bit_rate)
    if tagged is not None:
        # Encoders disagree on whether the frame of the tag counts.
        if tagged not in (count, count - 1):
            raise DamagedError(f"its header declares {tagged} frames, and {count - 1} are there")
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
    """Return the number of frames that a tag in the first frame tells."""
    tag = place + first.tag
    if content[tag : tag + 4] in (b"Xing", b"Info"):
        flags, count = struct.unpack_from(">II", content, tag + 4)
        return int(count) if flags & 1 else None
    if content[place + 36 : place + 40] == b"VBRI":
        return int(struct.unpack_from(">I", content, place + 50)[0])
    return None


def _behind_id3(content: _Bytes) -> int:
    """Return the offset after ID3v2 tags, and after zeros that follow them."""
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
"""First bytes of the kinds of files; the other kinds may begin with a tag."""

"""Spoken dialogues: recordings of two speakers with timed words, as streams of ids.

The files have the form of `moshi-finetune`: a .jsonl file has a line ``{"path", "duration"}`` for
each recording, with a path relative to the file. A recording has two channels: the agent left, the
user right. Its words are in ``x.json`` next to ``x.wav``, or in the file that the line names as
``words``: ``{"alignments": [[word, [start, end], speaker], ...]}``. The agent may have a role
there: ``"text_conditions": {"description": text}``. A sample of the agent's voice may lie next to
    them:
``x.voice.wav``. Because encoding audio is slow, ids are cached on disk and found by the content of
the audio.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from counterpoint.data.listed import ReadSequence
from counterpoint.data.speech.alignments import read_transcript
from counterpoint.data.speech.hearing import Hearing
from counterpoint.data.speech.monologue import (
    EPAD_ID,
    PAD_ID,
    Word,
    WordStarts,
    count_written,
    write_monologue,
)
from counterpoint.errors import UserError, absent
from counterpoint.files import read_json_lines, write_tensors
from counterpoint.speech.audio import audio_blocks, inspect_audio, read_audio
from counterpoint.speech.augment import Augmentation, augment_user
from counterpoint.speech.codec import Codec
from counterpoint.speech.loudness import normalise_loudness
from counterpoint.streams.spec import UNSET_ID

VOICE_LUFS = -24.0
"""Loudness to which a voice sample is scaled; that of PersonaPlex's own samples."""

_FORMAT = {"format": "counterpoint-dialogue-codes", "version": "1"}

RecordingProgress = Callable[[float, float], None]
"""A function called with the seconds of audio encoded so far and those of all recordings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """A recording of two speakers.

    Attributes:
        audio: Its file: the agent left, the user right.
        duration_s: Its length in seconds, from the list of recordings.
        words: Words of the text stream; ``None`` if they are not known.
        role: Role of the agent; empty for none.
        voice: File with a sample of the agent's voice; ``None`` if there is none.
    """

    audio: Path
    duration_s: float
    words: tuple[Word, ...] | None
    role: str = ""
    voice: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Example:
    """Consecutive frames of one dialogue.

    Attributes:
        source: Name of the recording.
        first_frame: Frame of the recording with which they begin.
        streams: "text" Int[T], "agent" Int[T, K], "user" Int[T, K]: every id on the frame of its
            content; no stream is delayed. Text is `UNSET_ID` if the words are not known.
        role: Role of the agent; empty for none.
        voice: Recording of the agent's voice; ``None`` if there is none.
    """

    source: str
    first_frame: int
    streams: dict[str, Int[Tensor, "..."]]
    role: str = ""
    voice: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DialogueConfig:
    """How recordings become examples.

    Attributes:
        chunk_s: Length of an example in seconds; a whole number of frames. The last example of a
            recording may be shorter. Each example is encoded separately.
        augmentation: Changes of the user's audio before it is encoded.
        seed: Seed of the augmentation; each seed gives another set of codes.
        cache_folder: Folder of the cached codes.
    """

    chunk_s: float = 100.0
    augmentation: Augmentation | None = None
    seed: int = 0
    cache_folder: str = "~/.cache/counterpoint/dialogues"

    def chunk_frames(self, codec: Codec) -> int:
        """Return the number of frames in an example.

        Raises:
            UserError: It is not a whole number.
        """
        frames = self.chunk_s * codec.frame_rate_hz
        if not 1 <= frames < math.inf or abs(frames - round(frames)) > 1e-6:
            raise UserError(
                f"`chunk_s` must be a whole number of frames of {1 / codec.frame_rate_hz} s: got "
                f"{self.chunk_s}, that is {frames} frames."
            )
        return round(frames)


class DialogueExamples(ReadSequence[Example]):
    """The examples of some dialogues, read from the files of their codes when they are needed.

    Args:
        dialogues: The recordings.
        files: Their codes, as written by `encode_dialogues`.
        encode: Returns the ids of one word.
        pad_id: See `write_monologue`.
        epad_id: See `write_monologue`.
        word_starts: See `write_monologue`.

    Raises:
        UserError: A file is damaged.
    """

    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        files: Sequence[Path],
        encode: Callable[[str], Sequence[int]],
        *,
        pad_id: int = PAD_ID,
        epad_id: int = EPAD_ID,
        word_starts: WordStarts = "exact",
    ) -> None:
        self._files = list(zip(dialogues, files, strict=True))
        self._encode = encode
        self._padding = {"pad_id": pad_id, "epad_id": epad_id}
        self._word_starts: WordStarts = word_starts
        self._places: list[tuple[int, int, int]] = []  # file, first frame, frame to stop before
        for number, file in enumerate(files):
            with _opened(file) as codes:
                num_frames = codes.get_slice("agent").get_shape()[0]
                chunk = int(codes.metadata()["chunk_frames"])
            edges = [*range(0, num_frames, chunk), num_frames]
            self._places += [(number, first, stop) for first, stop in pairwise(edges)]

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> Example:
        """Return example ``index``."""
        number, first, stop = self._places[index]
        dialogue, file = self._files[number]
        with _opened(file) as codes:
            frame_rate_hz = float(codes.metadata()["frame_rate_hz"])
            streams = {name: codes.get_slice(name)[first:stop].long() for name in ("agent", "user")}
        text = torch.full((stop - first,), UNSET_ID)
        if dialogue.words is not None:
            text = write_monologue(
                _words_near(dialogue.words, first / frame_rate_hz, stop / frame_rate_hz),
                self._encode,
                frame_rate_hz,
                stop - first,
                first_frame=first,
                word_starts=self._word_starts,
                **self._padding,
            )
        return Example(
            source=str(dialogue.audio),
            first_frame=first,
            streams={"text": text, **streams},
            role=dialogue.role,
            voice=dialogue.voice,
        )

    def note(self) -> str:
        """Return a line that counts the words that are incomplete in the text, or an empty text.

        Words are left out if they have no length, begin outside the recording, have no ids, or
        begin on the frame of another word. A word is cut short if the next word begins, or the
        example ends, before all its ids are written.
        """
        num_words = sum(len(dialogue.words or ()) for dialogue, _ in self._files)
        whole = cut = 0
        for number, first, stop in self._places:
            dialogue, file = self._files[number]
            if not dialogue.words:
                continue
            with _opened(file) as codes:
                frame_rate_hz = float(codes.metadata()["frame_rate_hz"])
            written = count_written(
                _words_near(dialogue.words, first / frame_rate_hz, stop / frame_rate_hz),
                self._encode,
                frame_rate_hz,
                stop - first,
                first_frame=first,
                word_starts=self._word_starts,
            )
            whole = whole + written.whole
            cut = cut + written.cut
        if whole == num_words:
            return ""
        return (
            f"of {num_words:,} words {num_words - whole - cut:,} are left out (no length, no ids, "
            f"outside of the recording, or on the frame of another) and {cut:,} are cut short"
        )


def _words_near(words: Iterable[Word], start_s: float, stop_s: float) -> list[Word]:
    """Return the words that begin in a part of a recording, or within a second of it."""
    return [word for word in words if not (word.start_s < start_s - 1 or word.start_s > stop_s + 1)]


def read_dialogues(path: str | Path, hearing: Hearing | None = None) -> list[Dialogue]:
    """Read the recordings that a .jsonl file lists, with the agent's words, role and voice.

    ``"alignments": null`` in a file of words says that they are not known.

    Args:
        path: The list.
        hearing: If it is given, the words are those of all speakers except `AGENT_SPEAKER`, at
            the times at which it places them; otherwise they are the agent's.

    Raises:
        UserError: There is no such file, or a line or a file of alignments has a wrong form.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(absent("The list of recordings", path))
    dialogues = []
    for place, record in read_json_lines(path):
        name = record.get("path")
        duration_s = record.get("duration")
        if (
            not isinstance(name, str)
            or not isinstance(duration_s, int | float)
            or isinstance(duration_s, bool)
            or not 0 <= duration_s < math.inf
        ):
            raise UserError(
                f"{place} must have a text `path` and a number `duration`: got "
                f"path={name!r}, duration={duration_s!r}."
            )
        audio = path.parent / name
        beside = path.parent / record["words"] if "words" in record else audio.with_suffix(".json")
        words, role = _read_beside(beside, hearing)
        voice = audio.with_suffix(".voice.wav")
        dialogues.append(
            Dialogue(
                audio=audio,
                duration_s=float(duration_s),
                words=words,
                role=role,
                voice=voice if voice.is_file() else None,
            )
        )
    if not dialogues:
        raise UserError(f"The list of recordings must name at least one: {str(path)!r} is empty.")
    return dialogues


def encode_dialogues(
    dialogues: Sequence[Dialogue],
    codec: Codec,
    config: DialogueConfig,
    on_progress: RecordingProgress | None = None,
    first: int = 0,
) -> list[Path]:
    """Encode recordings that are not cached yet, and return the files with the codes of all.

    A file is named by the content of its audio, the codec's name, and those parts of the config on
    which codes depend. It appears complete or not at all, so an interrupted run continues where it
    was. Processes that begin at different recordings share the work, because each finds the files
    of the others. Every call reads all audio files once to know their content.

    Args:
        dialogues: The recordings.
        codec: Encodes both speakers.
        config: How they are encoded.
        on_progress: Called after each recording.
        first: Index of the recording to begin with; those before it come last.

    Raises:
        UserError: A recording cannot be read or does not have two channels, or the config does not
            fit.
        OSError: The cache cannot be written.
    """
    config.chunk_frames(codec)
    folder = Path(config.cache_folder).expanduser()
    total_s = sum(dialogue.duration_s for dialogue in dialogues)
    files = list[Path]()
    done_s = 0.0
    for dialogue in [*dialogues[first:], *dialogues[:first]]:
        digest = _audio_digest(dialogue.audio)
        file = folder / f"{_key(digest, codec, config)}.safetensors"
        if not file.exists():
            codes = _encode(dialogue.audio, digest, codec, config)
            metadata = {
                **_FORMAT,
                "frame_rate_hz": repr(codec.frame_rate_hz),
                "chunk_frames": str(config.chunk_frames(codec)),
            }
            _write(file, codes, metadata)
        files.append(file)
        done_s += dialogue.duration_s
        if on_progress is not None:
            on_progress(done_s, total_s)
    begin = len(files) - first
    return [*files[begin:], *files[:begin]]


def encode_voice(path: Path, codec: Codec, cache_folder: str) -> Int[Tensor, "T K"]:
    """Return the codes of a voice sample, scaled to `VOICE_LUFS`, from the cache if possible.

    Raises:
        UserError: The sample cannot be read or is silent, or its file in the cache is damaged.
        OSError: The cache cannot be written.
    """
    content = [_FORMAT, _audio_digest(path), codec.name, len(codec.codebook_sizes), VOICE_LUFS]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    file = Path(cache_folder).expanduser() / f"voice-{key}.safetensors"
    if not file.exists():
        audio = normalise_loudness(
            read_audio(path, codec.sample_rate, 1), codec.sample_rate, VOICE_LUFS
        )
        _write(file, {"voice": codec.encode(audio)[0].cpu().contiguous()}, _FORMAT)
    try:
        return load_file(file)["voice"]
    except (SafetensorError, KeyError) as error:
        raise UserError(
            f"{str(file)!r} must hold the codes of a voice: {error}. Delete it and encode again."
        ) from error


def _read_beside(path: Path, hearing: Hearing | None) -> tuple[tuple[Word, ...] | None, str]:
    """Return the words that the agent says, or should write of what it hears; and its role."""
    if not path.is_file():
        raise UserError(
            f"A recording must have its words in a file: {str(path)!r} is missing. Write it, with "
            '{"alignments": null} if the words are not known.'
        )
    transcript = read_transcript(path)
    if transcript.words is None:
        return None, transcript.role
    words = transcript.by_agent() if hearing is None else hearing.place(transcript.by_others())
    return words, transcript.role


def _audio_digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(absent("The recording", path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(digest: str, codec: Codec, config: DialogueConfig) -> str:
    """Return the name of the file, a digest of everything on which the codes depend."""
    augmentation = None
    if config.augmentation is not None:
        augmentation = [asdict(config.augmentation), config.seed]
    content = [_FORMAT, digest, codec.name, config.chunk_frames(codec), augmentation]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _encode(
    path: Path, digest: str, codec: Codec, config: DialogueConfig
) -> dict[str, Int[Tensor, "T K"]]:
    """Encode both channels, chunk by chunk."""
    if (num_channels := inspect_audio(path).num_channels) != 2:
        raise UserError(
            "A recording must have two channels, the agent left and the user right: "
            f"{str(path)!r} has {num_channels}."
        )
    sides: list[Tensor] = []
    chunk_samples = config.chunk_frames(codec) * codec.frame_samples
    for number, audio in enumerate(_chunks(path, codec.sample_rate, chunk_samples)):
        agent, user = audio
        if config.augmentation is not None:
            name = f"{config.seed}/{digest}/{number}".encode()
            seed = int.from_bytes(hashlib.sha256(name).digest()[:7])
            user = augment_user(user, agent, codec.sample_rate, config.augmentation, seed)
        sides.append(codec.encode(torch.stack((agent, user))).cpu())
    dtype = torch.int16 if max(codec.codebook_sizes) <= 1 << 15 else torch.int32
    agent, user = torch.cat(sides, 1).to(dtype)
    return {"agent": agent.contiguous(), "user": user.contiguous()}


def _chunks(path: Path, sample_rate: int, chunk_samples: int) -> Iterator[Float[Tensor, "2 N"]]:
    """Yield pieces of equal length, the last one shorter; only one of them is in memory."""
    pending = list[Tensor]()
    num_pending = 0
    for block in audio_blocks(path, sample_rate, 2):
        pending.append(block)
        num_pending += block.shape[1]
        if num_pending >= chunk_samples:
            *full, rest = torch.cat(pending, 1).split(chunk_samples, 1)
            if rest.shape[1] == chunk_samples:
                full = [*full, rest]
                rest = rest[:, :0]
            yield from full
            pending = [rest]
            num_pending = rest.shape[1]
    if num_pending:
        yield torch.cat(pending, 1)


def _write(file: Path, codes: dict[str, Int[Tensor, "T K"]], metadata: dict[str, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, codes, metadata)
    except OSError as error:
        raise OSError(
            f"Codes must be written to {str(file.parent)!r}, which failed: {error}. Free space or "
            "set `cache_folder`; what was encoded before is kept."
        ) from error


def _opened(file: Path) -> Any:
    try:
        codes: Any = safe_open(file, "pt")
        metadata = codes.metadata() or {}
        if metadata.items() >= _FORMAT.items() and set(codes.keys()) == {"agent", "user"}:
            return codes
        found = f"has {metadata}"
    except (OSError, SafetensorError) as error:
        found = str(error)
    raise UserError(
        f"{str(file)!r} must hold the codes of a dialogue: {found}. Delete it and encode again."
    )

"""The ear of a conversation: it finds the turns of a user and knows their words while they speak.

A turn begins with some voiced blocks. In it the words are recognised again and again; words that
are long past are fixed, so that no more sound is recognised at once than the engine can read. When
the user pauses, the words are recognised to their end at once, so that an answer can be prepared
before it is certain that the turn is over. A turn ends after a longer pause, and later if what was
said does not sound finished.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.runtime.cascade.lanes import Lane
from counterpoint.runtime.cascade.returned import checked_number, checked_words, plain
from counterpoint.speech.partials import ScoredWord
from counterpoint.streams.seconds import num_begun, num_complete

EAR_HZ = 16_000
EAR_BLOCK = 512
BLOCK_S = EAR_BLOCK / EAR_HZ
_BLOCK = Fraction(EAR_BLOCK, EAR_HZ)  # seconds

Detect = Callable[[Float[Tensor, " 512"]], float]
"""Returns the probability of speech in the next block of 32 ms at 16 kHz."""

Recognise = Callable[[Float[Tensor, " N"]], Sequence[ScoredWord]]
"""Returns the words of sound at 16 kHz, with times from its first sample on."""


class Sign(Enum):
    """What the ear has noticed."""

    BEGAN = auto()
    WORDS = auto()
    PAUSED = auto()
    RESUMED = auto()
    ENDED = auto()
    FAILED = auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class EarRules:
    """When a turn begins and ends, and how often its words are recognised.

    Attributes:
        voiced: Probability from which on a block is voiced.
        unvoiced: Probability below which a block within a turn is not.
        begin_s: Voiced time with which a turn begins.
        look_s: Silence after which the words are recognised, in case it becomes a pause.
        pause_s: Silence after which the turn may be over.
        end_s: Silence after which it is over if the words end like a sentence.
        unfinished_end_s: Silence after which it is over whatever the words are.
        unrecognised_end_s: Silence after which it is over although its last words are not known.
        recognise_s: Longest time of a recognition; after it the words so far must do.
        partial_s: Time between two recognitions.
        before_s: Sound before the turn that is recognised too.
        fixed_s: Length of sound from which on its first words are fixed.
        kept_words: Number of last words that are not fixed.
    """

    voiced: float = 0.5
    unvoiced: float = 0.35
    begin_s: float = 0.09
    look_s: float = 0.06
    pause_s: float = 0.19
    end_s: float = 0.5
    unfinished_end_s: float = 1.0
    unrecognised_end_s: float = 5.0
    recognise_s: float = 10.0
    partial_s: float = 0.5
    before_s: float = 0.3
    fixed_s: float = 18.0
    kept_words: int = 4


@dataclass(kw_only=True, slots=True)
class UserTurn:
    """A turn of the user as it is known so far; times are those of the conversation.

    Attributes:
        number: Number of the turn.
        start_s: Start of its voice.
        voice_end_s: End of the last voiced block.
        voiced_s: Length of its voiced blocks together.
        words: Words so far.
        known_s: For each word, when it was first recognised at its place.
        words_end_s: End of the sound to which the words belong.
        is_incomplete: Whether words are missing, because they could not be recognised.
        ends_soon: Whether every pause ends it: the agent has taken the floor.
        is_over: Whether the turn has ended.
    """

    number: int
    start_s: float
    voice_end_s: float
    voiced_s: float
    words: tuple[ScoredWord, ...] = ()
    known_s: tuple[float, ...] = ()
    words_end_s: float = 0.0
    is_incomplete: bool = False
    ends_soon: bool = False
    is_over: bool = False

    @property
    def text(self) -> str:
        """The words as one text."""
        return " ".join(word.text for word in self.words)

    @property
    def is_recognised(self) -> bool:
        """Whether the words belong to the whole voice and some of the silence after it.

        Sound that ends with the last voiced block may lack the quiet end of the last word.
        """
        return self.words_end_s > self.voice_end_s

    def update(self, words: tuple[ScoredWord, ...], num_fixed: int, now_s: float) -> None:
        """Take newly recognised words; those that stay keep the time at which they were known.

        Args:
            words: All words of the turn.
            num_fixed: Number of first words that are those of before.
            now_s: Time of the conversation.
        """
        same = num_fixed
        for old, new in zip(self.words[num_fixed:], words[num_fixed:], strict=False):
            if plain(old.text) != plain(new.text):
                break
            same += 1
        self.known_s = self.known_s[:same] + (now_s,) * (len(words) - same)
        self.words = words


class Ear:
    """Hears a user, block by block.

    Args:
        detect: Tells speech from other sound.
        recognise: Recognises words.
        lane: Where words are recognised.
        rules: See `EarRules`.
        before: Words that were fixed in the turn are in `UserTurn` as well.

    Attributes:
        turn: The newest turn; ``None`` before the first.
        is_pausing: Whether the user pauses within the turn.
        error: Why words or voice could not be recognised, with the sign `Sign.FAILED`.
    """

    def __init__(
        self, detect: Detect, recognise: Recognise, lane: Lane, rules: EarRules | None = None
    ) -> None:
        self.rules = rules or EarRules()
        self.turn: UserTurn | None = None
        self.is_pausing = False
        self.error = ""
        self._detect = detect
        self._recognise = recognise
        self._lane = lane
        self._num_before = num_begun(self.rules.before_s, _BLOCK)
        self._num_voiced = max(num_begun(self.rules.begin_s, _BLOCK), 1)
        self._recent: deque[Tensor] = deque(maxlen=self._num_before + self._num_voiced)
        self._voiced = 0
        self._sound = _Sound()
        self._job_end_s = 0.0
        self._next_s = 0.0
        self._may_fail = True  # whether a failure since the last voice is tried again
        self._detects = True  # whether the detector has worked for the newest block
        self._is_owed = False  # whether the pause tries again what has failed before it

    @property
    def in_turn(self) -> bool:
        """Whether the user has the floor."""
        return self.turn is not None and not self.turn.is_over

    def push(self, block: Float[Tensor, " 512"], now_s: float) -> list[Sign]:
        """Hear a block that ends now; words are taken by `take_words`.

        Args:
            block: The block, at `EAR_HZ`.
            now_s: Time of the conversation.
        """
        signs: list[Sign] = []
        chance = self._chance(block, signs)
        self._recent.append(block)
        if not self.in_turn:
            self._voiced = self._voiced + 1 if chance >= self.rules.voiced else 0
            if self._voiced >= self._num_voiced:
                self._begin(now_s)
                signs.append(Sign.BEGAN)
        else:
            self._sound.add(block)
            signs += self._follow(chance, now_s)
        return signs

    def _chance(self, block: Float[Tensor, " 512"], signs: list[Sign]) -> float:
        """Return the chance of speech: none while the detector fails, which is told once."""
        try:
            chance = checked_number(self._detect(block), "chances of speech")
        except Exception as error:
            if self._detects:
                self.error = f"the detector fails: {str(error) or type(error).__name__}"
                signs.append(Sign.FAILED)
            self._detects = False
            return 0.0
        self._detects = True
        return chance

    def _begin(self, now_s: float) -> None:
        number = 1 if self.turn is None else self.turn.number + 1
        voiced_s = self._voiced * BLOCK_S
        start_s = max(now_s - voiced_s, 0.0)
        num_before = self._num_before
        if self.turn is not None:  # its words are not recognised twice
            num_before = min(num_before, round((start_s - self.turn.voice_end_s) / BLOCK_S))
        self.turn = UserTurn(number=number, start_s=start_s, voice_end_s=now_s, voiced_s=voiced_s)
        self._lane.stop()
        blocks = list(self._recent)[-self._voiced - num_before :]
        begin_s = max(now_s - len(blocks) * BLOCK_S, 0.0)
        self._sound = _Sound(start_s=begin_s, voice_s=start_s, known_s=start_s, blocks=blocks)
        self._voiced = 0
        self.is_pausing = False
        self._may_fail = True
        self._is_owed = False
        self._next_s = now_s + self.rules.partial_s

    def _follow(self, chance: float, now_s: float) -> list[Sign]:
        """Follow the voice within a turn."""
        turn = self._open()
        if chance >= (self.rules.voiced if self.is_pausing else self.rules.unvoiced):
            turn.voice_end_s = now_s
            turn.voiced_s += BLOCK_S
            self._may_fail = True
            self._is_owed = False
            if self.is_pausing:
                self.is_pausing = False
                return [Sign.RESUMED]
            if now_s >= self._next_s and not self._lane.busy:
                self._start(now_s)
            return []
        silence_s = now_s - turn.voice_end_s
        is_new = self._job_end_s <= turn.voice_end_s  # its end was not heard
        if not self.is_pausing and silence_s >= self.rules.pause_s:
            self.is_pausing = True
            if is_new or self._is_owed:
                self._start(now_s)
            return [Sign.PAUSED]
        if is_new and silence_s >= self.rules.look_s and not self._lane.busy:
            self._start(now_s)
        if self.is_pausing and silence_s >= self._patience_s(turn):
            turn.is_over = True
            self.is_pausing = False
            return [Sign.ENDED]
        return []

    def _patience_s(self, turn: UserTurn) -> float:
        """Return the silence that ends the turn, given its words."""
        if turn.ends_soon:
            return self.rules.pause_s
        if not turn.is_recognised:
            return self.rules.unrecognised_end_s
        finished = not turn.words or turn.words[-1].text.endswith((".", "?", "!"))
        return self.rules.end_s if finished else self.rules.unfinished_end_s

    def _start(self, now_s: float) -> None:
        """Recognise the sound so far."""
        self._job_end_s = now_s
        self._next_s = now_s + self.rules.partial_s
        self._is_owed = False
        audio = torch.cat(self._sound.blocks)

        def job() -> Iterator[tuple[ScoredWord, ...]]:
            yield checked_words(self._recognise(audio))

        self._lane.start(job(), now_s)

    def take_words(self, now_s: float) -> list[Sign]:
        """Take the words that were recognised since the last time."""
        signs: list[Sign] = []
        for step in self._lane.poll(now_s):
            if step.error is not None:
                self.error = str(step.error) or type(step.error).__name__
                self._shorten_unknown()
                self._try_again(now_s)
                signs.append(Sign.FAILED)
            elif not step.is_last:
                turn = self._open()
                words = self._sound.placed(step.value, self._job_end_s)
                turn.words_end_s = self._job_end_s
                turn.is_incomplete = self._sound.has_gap
                self._sound.known_s = self._job_end_s
                fixed = self._sound.fixed
                turn.update((*fixed, *words), len(fixed), step.at_s)
                self._sound.shorten(words, self.rules)
                signs.append(Sign.WORDS)
        if self._lane.busy and now_s - self._job_end_s > self.rules.recognise_s:
            self._lane.stop()  # another one would take as long
            self.error = f"no words within {self.rules.recognise_s:g} s"
            self._shorten_unknown()
            if self._job_end_s > self._open().voice_end_s:
                self._give_up()
            signs.append(Sign.FAILED)
        return signs

    def _try_again(self, now_s: float) -> None:
        """Recognise once more what could not be recognised: in the pause, if there is none yet."""
        turn = self._open()
        if self._job_end_s <= turn.voice_end_s:
            return  # it had not heard the end: another one begins soon
        if not self._may_fail:
            self._give_up()
        elif self.is_pausing or turn.is_over:
            self._may_fail = False
            self._start(now_s)
        else:
            self._may_fail = False
            self._is_owed = True

    def _give_up(self) -> None:
        """Wait no longer for the last words: the words so far must do."""
        turn = self._open()
        turn.words_end_s = self._job_end_s
        turn.is_incomplete = True

    def _shorten_unknown(self) -> None:
        """Drop sound that is too long, although its last words are not known."""
        turn = self._open()
        self._sound.shorten(turn.words[len(self._sound.fixed) :], self.rules)
        self._sound.has_gap |= self._sound.start_s > self._sound.known_s

    def _open(self) -> UserTurn:
        if self.turn is None:
            raise AssertionError("a turn has begun before words are recognised")
        return self.turn


@dataclass(slots=True)
class _Sound:
    """The sound of a turn that is still recognised, and the words before it.

    Attributes:
        start_s: Time of its first sample.
        voice_s: Time at which the voice begins.
        known_s: End of the sound whose words are known.
        blocks: The sound.
        fixed: Words before it.
        has_gap: Whether sound before it was dropped whose words are not known.
    """

    start_s: float = 0.0
    voice_s: float = 0.0
    known_s: float = 0.0
    blocks: list[Tensor] = field(default_factory=list)
    fixed: list[ScoredWord] = field(default_factory=list)
    has_gap: bool = False

    def add(self, block: Tensor) -> None:
        """Add a block."""
        self.blocks.append(block)

    def placed(self, words: Sequence[ScoredWord], end_s: float) -> tuple[ScoredWord, ...]:
        """Return words with times of the conversation, which lie within the voice and the sound.

        Some recognisers read longer pieces than they are given, and find words after their end, or
        before their start if their times are corrected for a delay. The sound would be cut there,
        and all later words would stand at other times.

        Args:
            words: Words with times from the first sample on.
            end_s: End of the sound in which they were recognised.
        """

        def time_s(since_s: float) -> float:
            return min(max(since_s + self.start_s, self.start_s, self.voice_s), end_s)

        return tuple(
            word._replace(start_s=time_s(word.start_s), end_s=time_s(word.end_s)) for word in words
        )

    def shorten(self, words: Sequence[ScoredWord], rules: EarRules) -> None:
        """Fix words and drop their sound, if there is too much of it."""
        length_s = len(self.blocks) * BLOCK_S
        if length_s < rules.fixed_s:
            return
        done = list(words[: max(len(words) - rules.kept_words, 0)])
        until_s = self.start_s + length_s / 2
        if not done:  # with few words, such as before music, only the newest sound is kept
            done = [word for word in words if word.end_s <= until_s]
        else:
            until_s = done[-1].end_s
        # Words in no order may end before sound that was dropped with others.
        num_blocks = max(num_complete(until_s - self.start_s, _BLOCK), 0)
        del self.blocks[:num_blocks]
        self.fixed += done
        self.start_s += num_blocks * BLOCK_S

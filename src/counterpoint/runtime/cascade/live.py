"""Conversations in real time: with a recording that is played at its own pace, or a microphone."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.packages import optional_module
from counterpoint.runtime.cascade.cascade import Cascade
from counterpoint.runtime.cascade.ear import BLOCK_S, EAR_BLOCK, EAR_HZ
from counterpoint.runtime.talk import AGENT
from counterpoint.streams.timeline import Event

_MOST_WAITING_S = 2.0
_POLL_S = 0.005
_STOPPED = "the sound card has stopped"


def listen(
    cascade: Cascade,
    blocks: Iterable[Float[Tensor, "1 _N"]],
    tail_s: float,
    *,
    paced: bool = True,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Float[Tensor, "2 _N"]]:
    """Let a conversation hear a recording and, after it, silence until nothing happens any more.

    Args:
        cascade: The conversation.
        blocks: The recording at `EAR_HZ`.
        tail_s: Longest silence after it.
        paced: Whether every block is heard when it would have been spoken. A conversation whose
            lanes are threads must be paced.
        clock: Returns seconds.
        sleep: Waits for seconds.

    Yields:
        For each block of 32 ms, the agent (left) and the user (right).
    """
    began_s = clock()
    for block in _even(blocks, tail_s):
        if paced:
            wait(cascade, began_s, clock, sleep)
        yield torch.stack((cascade.hear(block), block))
        if block is _SILENCE and cascade.is_idle:
            return


def wait(
    cascade: Cascade,
    began_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Attend to a conversation until its next block has been spoken.

    Args:
        cascade: The conversation.
        began_s: When it began, on the clock.
        clock: Returns seconds.
        sleep: Waits for seconds.
    """
    while (rest_s := began_s + cascade.now_s + BLOCK_S - clock()) > 0:
        sleep(min(rest_s, _POLL_S))
        cascade.attend()


_SILENCE = torch.zeros(EAR_BLOCK)


def _even(blocks: Iterable[Float[Tensor, "1 _N"]], tail_s: float) -> Iterator[Tensor]:
    """Yield blocks of equal length: the recording, and then silence."""
    rest = torch.zeros(0)
    for block in blocks:
        pieces = torch.cat([rest, block[0]]).split(EAR_BLOCK)
        whole = [piece for piece in pieces if len(piece) == EAR_BLOCK]
        rest = pieces[-1] if len(pieces) > len(whole) else torch.zeros(0)
        yield from whole
    if len(rest):
        yield torch.cat([rest, torch.zeros(EAR_BLOCK - len(rest))])
    for _ in range(round(tail_s / BLOCK_S)):
        yield _SILENCE


class Exchange:
    """What a sound card and a conversation hand to each other.

    The card wants and gives blocks at its own pace, in a thread of its own. If the conversation
    falls behind, the oldest sound is dropped, so that it never answers what was said long ago.

    Args:
        most_waiting_s: Sound that may wait to be heard.

    Attributes:
        num_dropped: Blocks of the microphone that were never heard.
        num_unplayed: Blocks of the conversation that were never played, because it had fallen
            behind and then spoke several at once.
    """

    def __init__(self, most_waiting_s: float = _MOST_WAITING_S) -> None:
        self._most = max(round(most_waiting_s / BLOCK_S), 1)
        self._heard: deque[Tensor] = deque()
        self._said: deque[Tensor] = deque()
        self.num_dropped = 0
        self.num_unplayed = 0

    @property
    def waiting_s(self) -> float:
        """Seconds of sound that were not heard yet."""
        return len(self._heard) * BLOCK_S

    def swap(self, heard: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """Give a block of the microphone, and return the block to play."""
        self._heard.append(heard)
        while len(self._heard) > self._most:
            self._heard.popleft()
            self.num_dropped += 1
        return self._said.popleft() if self._said else torch.zeros(len(heard))

    def next(self) -> Float[Tensor, " N"] | None:
        """Return the next block to hear, if there is one."""
        return self._heard.popleft() if self._heard else None

    def say(self, sound: Float[Tensor, " N"]) -> None:
        """Queue a block to play; never more than is heard, so an interruption is heard at once."""
        self._said.append(sound)
        while len(self._said) > 2:
            self._said.popleft()
            self.num_unplayed += 1


def converse_with_microphone(
    cascade: Cascade, seconds: float | None = None
) -> Iterator[Float[Tensor, "2 _N"]]:
    """Talk through the microphone and the loudspeakers of this machine, best with headphones.

    A card that stops, because it was pulled out for example, ends the conversation with an event.

    Args:
        cascade: The conversation.
        seconds: Longest time; ``None`` until it is interrupted.

    Yields:
        For each block, the agent (left) and the user (right).

    Raises:
        UserError: There is no sound card, or PortAudio is missing.
    """
    exchange = Exchange()

    def call(heard: Any, said: Any, frames: int, times: Any, status: Any) -> None:
        block = torch.from_numpy(heard[:, 0].copy())
        said[:, 0] = exchange.swap(block).numpy()

    try:
        device: Any = optional_module("sounddevice")
        stream = device.Stream(
            samplerate=EAR_HZ, blocksize=EAR_BLOCK, channels=1, dtype="float32", callback=call
        )
    except Exception as error:  # PortAudio raises OSError, a missing card an error of its own
        reason = " ".join(str(error).split())
        raise UserError(
            f"`--microphone` must find a sound card through PortAudio: {reason}. Install "
            "libportaudio2, or give a recording with `--input`."
        ) from None
    num_dropped = num_unplayed = 0
    with stream:
        while seconds is None or cascade.now_s < seconds:
            block = exchange.next()
            if block is None and not stream.active:
                cascade.note(_told("ear", "error", cascade.now_s, text=_STOPPED))
                return
            if block is None:
                time.sleep(_POLL_S)
                cascade.attend()
                continue
            if exchange.num_dropped > num_dropped:
                lost_s = (exchange.num_dropped - num_dropped) * BLOCK_S
                num_dropped = exchange.num_dropped
                cascade.note(_told("ear", "dropped", cascade.now_s, lost_s=round(lost_s, 3)))
            said = cascade.hear(block)
            exchange.say(said)
            if exchange.num_unplayed > num_unplayed:
                lost_s = (exchange.num_unplayed - num_unplayed) * BLOCK_S
                num_unplayed = exchange.num_unplayed
                cascade.note(_told(AGENT, "dropped", cascade.now_s, lost_s=round(lost_s, 3)))
            yield torch.stack((said, block))


def _told(stream: str, kind: str, now_s: float, text: str = "", **payload: float) -> Event:
    """Return an event: sound that was not heard ("ear") or not played ("agent"), or an error."""
    return Event(start_s=now_s, end_s=now_s, stream=stream, kind=kind, text=text, payload=payload)

"""The batch engine: many live sessions of one model, all in one step.

`Sessions` with admission: sessions have numbers that are never used again, a full house
refuses, and the beginning of prompts (a voice) is read once for all. A step costs about the same
however many rows are busy. One thread at a time may use an engine, in the process that made it: a
`Guard` refuses others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from counterpoint.errors import UserError
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.given import Codes, check_prompt, check_tensors
from counterpoint.runtime.guard import Guard, guarded
from counterpoint.runtime.prefix import behind, read_prefix
from counterpoint.runtime.sampler import NoIdError
from counterpoint.runtime.session import Frame, Session
from counterpoint.runtime.sessions import Sessions
from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.contract import Prefix, System


class FullHouseError(RuntimeError):
    """No row is free for another session."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Admission:
    """What a session began with, and the row that it has."""

    row: int
    sampling: FrameSampling
    prompt: Ticks | None
    voice: Prefix | None
    opening: Frame | None = None


class _Shared(NamedTuple):
    """The beginning of prompts: its codes, and what the model has made of them."""

    codes: Ticks
    prefix: Prefix
    is_voice: bool


class Engine:
    """Up to ``num_rows`` sessions of one model, each with its own prompt, seed and pace.

    What a session says depends on what it hears, its prompt and its sampling alone, whatever the
    others do: they may be admitted, pause, be reset, end or send frames that are refused. Its
    scores are then the same bit for bit in the same row of an engine of this size. In another row
    they are the same to float tolerance, because some kernels round the last rows of a product in
    another way. Whoever is not in a `step` pauses.

    Args:
        system: The model; of one that predicts the user as well, its `trimmed` form.
        num_rows: Sessions at a time; a guided session counts as two.
        pinned_frames: Frames at the beginning of every session, at least those of the longest
            prompt, that stay visible when the model's window has moved on; 0 pins nothing. The
            rest of the window is for the newest frames.

    Raises:
        UserError: The numbers do not fit the model.
    """

    def __init__(self, system: System, num_rows: int, *, pinned_frames: int = 0) -> None:
        if invented := [s.name for s in system.layout.predicted if s.role == Role.HEARD]:
            # Given ids of a predicted stream are the next frame's: the user would be heard late,
            # and made up where nothing is given (defects 1 and 2 of PersonaPlex's server).
            raise UserError(
                f"A model that listens must not predict what it hears: it predicts "
                f"{', '.join(invented)}. Give `model.trimmed(n)`, n being the agent's codebooks."
            )
        self.guard = Guard()
        self.pinned_frames = pinned_frames
        self.system = system.pinned(pinned_frames) if pinned_frames else system
        self._sessions = Sessions(self.system, num_rows)
        self._admissions: dict[int, _Admission] = {}
        self._num_admitted = 0
        self._shared: dict[str, _Shared] = {}

    def __getitem__(self, session: int) -> Session:
        return self._sessions[self._admission(session).row]

    @property
    def running(self) -> list[int]:
        """Sessions that have been admitted and not ended."""
        return list(self._admissions)

    @property
    def num_free(self) -> int:
        """Rows that are free."""
        return len(self._sessions.free)

    @guarded
    def share(self, name: str, codes: Ticks, prefix: Prefix | None = None) -> None:
        """Read the beginning of prompts once, for all that begin with it.

        Args:
            name: Name of the prefix, such as that of a voice; an earlier one is dropped.
            codes: Its frames, as a prompt of `admit`: each prompt that begins so goes on behind it.
            prefix: What the model has made of them already, as of a voice that comes as a file
                (`counterpoint.formats.open_voice`). Sessions have it that are admitted with its
                name as their voice.

        Raises:
            UserError: They do not fit the model.
        """
        check_tensors(codes, "A prefix")
        own = {key: ids.cpu() for key, ids in codes.items()}
        read = prefix or read_prefix(self.system, codes)
        self._shared[name] = _Shared(own, read, is_voice=prefix is not None)

    @guarded
    def unshare(self, name: str) -> None:
        """Drop a shared prefix; sessions that began with it go on.

        Raises:
            UserError: There is none of this name.
        """
        if name not in self._shared:
            known = ", ".join(sorted(self._shared)) or "none"
            raise UserError(f"A prefix must be shared to be dropped: got {name!r}, have {known}.")
        del self._shared[name]

    @guarded
    def admit(
        self,
        sampling: FrameSampling | None = None,
        *,
        prompt: Ticks | None = None,
        voice: str | None = None,
    ) -> int:
        """Begin a session.

        Args:
            sampling: How its ids are chosen; by default `FrameSampling()`.
            prompt: What all streams said before, one row in content order; see
                `Sessions.start`. As of a conversation, the model sees of it what its window
                reaches: of a longer one the end, unless `pinned_frames` refuses it.
            voice: Name of a shared voice that the agent has; the prompt follows behind it.

        Returns:
            Its number, which no other session ever has.

        Raises:
            FullHouseError: There is no row for it.
            UserError: The prompt does not fit, or there is no such voice.
        """
        sampling = sampling or FrameSampling()
        prefix = None
        if not isinstance(sampling, FrameSampling):
            raise UserError(f"`sampling` must be a `FrameSampling`: got {type(sampling).__name__}.")
        if prompt is not None:
            check_tensors(prompt, "A prompt")
        prompt = prompt and {name: ids.clone() for name, ids in prompt.items()}
        if voice is not None:
            codes, prefix = self._voice(voice)
            prompt = behind(codes, prompt)
        free = self._sessions.free
        needed = 1 if sampling.guidance == 1 else 2
        if len(free) < needed:
            raise FullHouseError(
                f"A session of this sampling must have {needed} free rows: {len(free)} of "
                f"{len(self._sessions)} are free. Try again when one has ended."
            )
        begun = _Admission(row=free[0], sampling=sampling, prompt=prompt, voice=prefix)
        self._start(self._num_admitted, begun)
        self._num_admitted += 1
        return self._num_admitted - 1

    def opening(self, session: int) -> Frame | None:
        """What a session said before it heard anything; only models without delay have it.

        Raises:
            UserError: It is not running; so do `reset` and `end`.
        """
        return self._admission(session).opening

    @guarded
    def step(self, heard: Mapping[int, Mapping[str, Codes]]) -> dict[int, Frame]:
        """Let some sessions hear a frame and say the next one; the others pause.

        Args:
            heard: What each hears, by session; see `Sessions.step`.

        Returns:
            The frames that are complete, by session.

        Raises:
            UserError: A session is not running or what it hears does not fit. The message names
                it, and no session has heard anything then: leave it out and step again.
            NoIdError: As for `Sessions.step`: all sessions have heard this.
        """
        if not isinstance(heard, Mapping):
            raise UserError(
                f"What sessions hear must be given by session, as a dict: got "
                f"{type(heard).__name__}."
            )
        rows = {self._admission(session).row: session for session in heard}
        given = {row: heard[session] for row, session in rows.items()}
        try:
            said = self._sessions.step(given)
        except NoIdError:  # nothing was refused
            raise
        except ValueError:
            for row, session in rows.items():
                try:
                    self._sessions.check(row, given[row])
                except ValueError as problem:
                    raise UserError(f"Session {session} is refused. {problem}") from None
            raise
        return {rows[row]: frame for row, frame in said.items()}

    @guarded
    def reset(self, session: int) -> None:
        """Let a session begin again, with its sampling and its prompt."""
        self._start(session, self._admission(session))

    @guarded
    def end(self, session: int) -> None:
        """End a session; its row is free then."""
        self._sessions.stop(self._admission(session).row)
        del self._admissions[session]

    def _start(self, session: int, begun: _Admission) -> None:
        row = begun.row
        sampling = begun.sampling
        prompt = begun.prompt
        _, num_frames = check_prompt(self.system.layout, prompt, self.system.device)
        if self.pinned_frames and num_frames > self.pinned_frames:
            raise UserError(
                f"A prompt must be pinned whole: it has {num_frames} frames, `pinned_frames` is "
                f"{self.pinned_frames}. Shorten it, or make an engine that pins more."
            )
        running = self._admissions.get(session)
        twin = self._sessions[row].twin if running else None
        if twin is None and sampling.guidance != 1:
            twin = next(other for other in self._sessions.free if other != row)
        prefix = begun.voice or self._prefix_of(prompt)
        started = self._sessions.start(row, sampling, prompt=prompt, prefix=prefix, twin=twin)
        self._admissions[session] = replace(begun, opening=started.opening)

    def _prefix_of(self, prompt: Ticks | None) -> Prefix | None:
        """The longest shared prefix with which a prompt begins."""
        found = None
        for codes, prefix, is_voice in self._shared.values():
            fits = (
                prompt is not None
                and not is_voice  # two of them may have the same codes where they are known
                and set(prompt) == set(codes)
                and all(
                    torch.equal(ids, prompt[name][:, : prefix.num_ticks].cpu())
                    for name, ids in codes.items()
                )
            )
            if fits and (found is None or prefix.num_ticks > found.num_ticks):
                found = prefix
        return found

    def _voice(self, name: str) -> tuple[Ticks, Prefix]:
        voices = {key: shared for key, shared in self._shared.items() if shared.is_voice}
        if name not in voices:
            known = ", ".join(sorted(voices)) or "none"
            raise UserError(f"A voice must be shared first: got {name!r}, have {known}.")
        return voices[name].codes, voices[name].prefix

    def _admission(self, session: int) -> _Admission:
        if type(session) is not int:
            raise UserError(f"A session must be its number: got {session!r}.")
        if session not in self._admissions:
            was = "has ended" if 0 <= session < self._num_admitted else "was never admitted"
            raise UserError(f"Session {session} must be running: it {was}. Admit a new one.")
        return self._admissions[session]

"""The batch engine: many live sessions of one model, which share every step.

It adds admission to `Sessions`. Sessions have numbers that are never used again, a full engine
refuses further sessions, and the beginning of prompts (a voice) is read once for all sessions. A
step costs about the same however many rows are in use. Only one thread may use an engine at a time,
in the process that made it; a `Guard` refuses other calls.
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
from counterpoint.runtime.session import Frame, NoIdError, Session
from counterpoint.runtime.sessions import Sessions
from counterpoint.streams.spec import Role, Ticks
from counterpoint.systems.contract import Prefix, System


class FullHouseError(RuntimeError):
    """No row is free for another session."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Admission:
    """The row of a session, and what the session began with."""

    row: int
    sampling: FrameSampling
    prompt: Ticks | None
    voice: Prefix | None
    opening: Frame | None = None


class _Shared(NamedTuple):
    """The beginning of prompts: its codes, and the model's state after them."""

    codes: Ticks
    prefix: Prefix
    is_voice: bool


class Engine:
    """Up to ``num_rows`` sessions of one model, each with its own prompt, seed and pace.

    The output of a session depends only on its input, its prompt and its sampling, whatever the
    other sessions do: they may be admitted, pause, be reset, end or send frames that are refused.
    Its scores are equal bit for bit in the same row of an engine of this size. In another row they
    are equal to float tolerance, because some kernels round the last rows of a product differently.
    A session that is not named in a `step` pauses.

    Args:
        system: The model. For a model that also predicts the user, use its `trimmed` form.
        num_rows: Largest number of sessions at a time; a guided session counts as two.
        pinned_frames: Number of frames at the beginning of every session that stay visible when the
            model's window has moved on; at least the length of the longest prompt. 0 pins nothing.
            The rest of the window is for the newest frames.

    Raises:
        UserError: The model predicts what it hears, cannot pin, or the numbers do not fit it.
    """

    def __init__(self, system: System, num_rows: int, *, pinned_frames: int = 0) -> None:
        if invented := [s.name for s in system.layout.predicted if s.role == Role.HEARD]:
            # Ids that are given to a predicted stream are those of the next frame: the user would
            # be heard late, and made up where nothing is given (defects 1 and 2 of PersonaPlex's
            # server).
            raise UserError(
                f"A model that listens must not predict what it hears: it predicts "
                f"{', '.join(invented)}. Pass `model.trimmed(n)`, where n is the agent's codebooks."
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
        """Sessions that were admitted and have not ended."""
        return list(self._admissions)

    @property
    def num_free(self) -> int:
        """Number of free rows."""
        return len(self._sessions.free)

    @guarded
    def share(self, name: str, codes: Ticks, prefix: Prefix | None = None) -> None:
        """Read the beginning of prompts once, for all sessions that begin with it.

        Args:
            name: Name of the prefix, such as that of a voice; an earlier prefix of this name is
                dropped.
            codes: Its frames, as a prompt of `admit`. A prompt that begins with them continues from
                this prefix.
            prefix: The model's state after the frames if it has been computed, as for a voice in a
                file (`counterpoint.formats.open_voice`). Only sessions that are admitted with this
                name as their voice use it.

        Raises:
            UserError: The codes do not fit the model.
        """
        check_tensors(codes, "A prefix")
        own = {key: ids.cpu() for key, ids in codes.items()}
        read = prefix or read_prefix(self.system, codes)
        self._shared[name] = _Shared(own, read, is_voice=prefix is not None)

    @guarded
    def unshare(self, name: str) -> None:
        """Drop a shared prefix; sessions that began with it continue.

        Raises:
            UserError: There is no prefix of this name.
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
            prompt: Earlier content of all streams, one row in content order; see `Sessions.start`.
                The model reads what its window reaches: of a longer prompt only the end, unless
                `pinned_frames` refuses it.
            voice: Name of a shared voice that the agent gets; the prompt follows after it.

        Returns:
            The number of the session. No other session ever gets it.

        Raises:
            FullHouseError: No row is free for it.
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
                f"A session with this sampling must have {needed} free rows: {len(free)} of "
                f"{len(self._sessions)} are free. Try again when another session has ended."
            )
        begun = _Admission(row=free[0], sampling=sampling, prompt=prompt, voice=prefix)
        self._start(self._num_admitted, begun)
        self._num_admitted += 1
        return self._num_admitted - 1

    def opening(self, session: int) -> Frame | None:
        """Return what a session said before it heard anything; only models without delay do so.

        Raises:
            UserError: The session is not running. `reset` and `end` raise it too.
        """
        return self._admission(session).opening

    @guarded
    def step(self, heard: Mapping[int, Mapping[str, Codes]]) -> dict[int, Frame]:
        """Let some sessions hear a frame and say the next one; the others pause.

        Args:
            heard: What each session hears, by its number; see `Sessions.step`.

        Returns:
            The frames that are complete now, by session.

        Raises:
            UserError: A session is not running, or what it hears does not fit. The message names
                the session, and no session has heard anything: leave that one out and step again.
            NoIdError: As for `Sessions.step`, with the numbers of sessions. End those that it
                names, or reset them.
        """
        if not isinstance(heard, Mapping):
            raise UserError(
                f"What sessions hear must be given as a dict by session number: got "
                f"{type(heard).__name__}."
            )
        rows = {self._admission(session).row: session for session in heard}
        given = {row: heard[session] for row, session in rows.items()}
        try:
            said = self._sessions.step(given)
        except NoIdError as problem:  # the input of all sessions was accepted
            frames = {rows[row]: frame for row, frame in problem.frames.items()}
            ended = [rows[row] for row in problem.ended]
            raise NoIdError.of("session", ended, frames) from None
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
        """Let a session begin again with its sampling and its prompt."""
        self._start(session, self._admission(session))

    @guarded
    def end(self, session: int) -> None:
        """End a session and free its row."""
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
        """Return the longest shared prefix with which a prompt begins."""
        found = None
        for codes, prefix, is_voice in self._shared.values():
            fits = (
                prompt is not None
                and not is_voice  # two voices may have the same codes where these are known
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
            raise UserError(f"A session must be given by its number: got {session!r}.")
        if session not in self._admissions:
            was = "has ended" if 0 <= session < self._num_admitted else "was never admitted"
            raise UserError(f"Session {session} must be running: it {was}. Admit a new one.")
        return self._admissions[session]

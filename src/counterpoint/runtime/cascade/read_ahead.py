"""Reading ahead: what is known of the next prompt is read before the next answer is asked for."""

from collections.abc import Iterator

from counterpoint.runtime.cascade.lanes import Lane
from counterpoint.runtime.cascade.thinking import Scene, SceneWriter
from counterpoint.runtime.cascade.trace import Trace


class ReadAhead:
    """Lets a language model read scenes; it keeps what it has read of a prompt.

    Args:
        read: Lets the model read a scene; what it yields is not used. ``None`` for a model that
            keeps nothing of a prompt.
        lane: Where it reads.
        trace: Where failures are told.
    """

    def __init__(self, read: SceneWriter | None, lane: Lane, trace: Trace) -> None:
        self._read = read
        self._lane = lane
        self._trace = trace
        self._wanted: Scene | None = None

    def read(self, scene: Scene) -> None:
        """Let the model read a scene, as soon as it has read the one before."""
        self._wanted = scene

    def stop(self) -> None:
        """Read no more: the model is needed for something else."""
        self._wanted = None
        self._lane.stop()

    def advance(self, now_s: float) -> None:
        """Take what was read, and begin the newest scene that is wanted."""
        for step in self._lane.poll(now_s):
            if step.error is not None:
                self._trace.fail("reading", str(step.error), step.at_s)
        if self._wanted is not None and self._read is not None and not self._lane.busy:
            self._lane.start(_reading(self._read, self._wanted), now_s)
            self._wanted = None


def _reading(read: SceneWriter, scene: Scene) -> Iterator[str]:
    """Let the model read in the lane, where it may fail or take its time."""
    yield from read(scene)

"""Multi-stream language models: several time-aligned streams, read and written at once.

Public names are imported on first use, so that ``counterpoint --help`` runs without importing
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterpoint.runtime.generate import generate as generate
    from counterpoint.runtime.load import load as load
    from counterpoint.runtime.sampler import Sampling as Sampling
    from counterpoint.runtime.save import save as save
    from counterpoint.streams.batch import Batch as Batch
    from counterpoint.streams.clock import available_at as available_at
    from counterpoint.streams.clock import visible as visible
    from counterpoint.streams.spec import UNSET_ID as UNSET_ID
    from counterpoint.streams.spec import Layout as Layout
    from counterpoint.streams.spec import Role as Role
    from counterpoint.streams.spec import Stream as Stream
    from counterpoint.streams.timeline import Event as Event
    from counterpoint.streams.timeline import Timeline as Timeline
    from counterpoint.systems.single_stream import SingleStream as SingleStream
    from counterpoint.systems.two_stream import TwoStream as TwoStream

_HOMES = {
    "Batch": "streams.batch",
    "Event": "streams.timeline",
    "Layout": "streams.spec",
    "Role": "streams.spec",
    "Sampling": "runtime.sampler",
    "SingleStream": "systems.single_stream",
    "Stream": "streams.spec",
    "Timeline": "streams.timeline",
    "TwoStream": "systems.two_stream",
    "UNSET_ID": "streams.spec",
    "available_at": "streams.clock",
    "generate": "runtime.generate",
    "load": "runtime.load",
    "save": "runtime.save",
    "visible": "streams.clock",
}
"""The module of each public name; a test keeps it equal to the imports above."""


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names and everything that is imported already."""
    return sorted({*globals(), *_HOMES})

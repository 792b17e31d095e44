"""Published models and our own, one a file, each readable alone."""

from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream

SYSTEMS: dict[str, type[SingleStream | TwoStream]] = {
    "single_stream": SingleStream,
    "two_stream": TwoStream,
}
"""Every system by name."""

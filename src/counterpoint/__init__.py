"""Multi-stream language models: several time-aligned streams, read and written at once."""

from counterpoint.runtime.generate import generate as generate
from counterpoint.runtime.sampler import Sampling as Sampling
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

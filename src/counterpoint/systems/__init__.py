"""Published models and our own: one system a file, and each file can be read alone."""

from functools import lru_cache
from typing import Any

import torch

from counterpoint.blocks.shapes_only import shapes_only
from counterpoint.errors import UserError
from counterpoint.streams.spec import Layout
from counterpoint.systems.contract import System
from counterpoint.systems.contract import SystemConfig as SystemConfig
from counterpoint.systems.hdlm import HdLM
from counterpoint.systems.hnet import HNet
from counterpoint.systems.hrt import HRT
from counterpoint.systems.lslm import LSLM
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.shanks import Shanks
from counterpoint.systems.single_stream import SingleStream
from counterpoint.systems.two_stream import TwoStream

SYSTEMS: dict[str, type[System]] = {
    "single_stream": SingleStream,
    "two_stream": TwoStream,
    "hrt": HRT,
    "hnet": HNet,
    "hdlm": HdLM,
    "moshi": Moshi,
    "lslm": LSLM,
    "shanks": Shanks,
}
"""Every system by name. PersonaPlex is a preset of `Moshi` (`counterpoint.systems.personaplex`)."""


def build_system(config: Any, seed: int) -> System:
    """Build the system of a config, with random weights.

    Args:
        config: Config of a system in `SYSTEMS`.
        seed: Seed of the weights.

    Raises:
        UserError: No system has such a config.
    """
    torch.manual_seed(seed)
    return _built(config)


def _built(config: Any) -> System:
    for cls in SYSTEMS.values():
        if cls.Config is type(config):
            build: Any = cls
            return build(config)
    known = ", ".join(cls.Config.__name__ for cls in SYSTEMS.values())
    raise UserError(f"`system` must be one of {known}: got {type(config).__name__}.")


def sketch(config: Any) -> System:
    """Build a system whose weights take no memory, to ask for its layout and its costs."""
    with shapes_only(), torch.random.fork_rng(devices=[]):
        return _built(config)


def system_layout(config: Any) -> Layout:
    """Return the layout of a config's system; the system is sketched once for equal configs.

    Args:
        config: Config of a system in `SYSTEMS`.

    Raises:
        UserError: No system has such a config.
    """
    try:
        hash(config)
    except TypeError:  # a list stands where a tuple should, or it is no config
        return sketch(config).layout
    return _layout_of_equals(config)


@lru_cache(maxsize=256)
def _layout_of_equals(config: Any) -> Layout:
    return sketch(config).layout

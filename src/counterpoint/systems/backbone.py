"""Systems that may begin with the weights of a model of another system, their backbone."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

Weights = Mapping[str, Tensor]
"""Weights of a model by their names."""


class OnBackbone(NamedTuple):
    """The weights of a system that begins with those of a model of another system.

    Attributes:
        taken: Weights of the other model, by their names in this system.
        fresh: All other weights, by name, which begin at random or in their own way.
    """

    taken: Weights
    fresh: Weights

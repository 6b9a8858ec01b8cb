"""The only stage that builds a model: slice weights, refit what names a size, patch sizes made at run time."""

from graphprune.rewrite.apply import Chosen, masked, rearranged
from graphprune.rewrite.arrays import arranged

__all__ = ["Chosen", "arranged", "masked", "rearranged"]

"""The only stage that builds a model: slice weights, refit what names a size, patch sizes made at run time."""

from graphprune.rewrite.apply import Chosen, masked, rearranged

__all__ = ["Chosen", "masked", "rearranged"]

"""Inputs to calibrate with, and what is learnt from running them."""

from graphprune.calibrate.samples import Feed, Samples, Source, describe

__all__ = ["Feed", "Samples", "Source", "describe"]

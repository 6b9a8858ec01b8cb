"""Inputs to calibrate with, and what is learnt from running them."""

from graphprune.calibrate.choice import Calibration, parse_calibration
from graphprune.calibrate.given import open_data
from graphprune.calibrate.samples import Feed, Samples, Source, describe

__all__ = ["Calibration", "Feed", "Samples", "Source", "describe", "open_data", "parse_calibration"]

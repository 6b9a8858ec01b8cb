"""What makes inputs up: drawn batch by batch from a seed, given a range, laid out as the model takes them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.calibrate import audio_made, images_made, own_text
from graphprune.calibrate.contents import Content, Inputs, Shapes
from graphprune.calibrate.images_made import Images
from graphprune.calibrate.ranges import Range
from graphprune.calibrate.samples import Feed
from graphprune.inputs import synthesise

Array: TypeAlias = npt.NDArray[Any]

LIKE = "things"
"""The kind whose mean and deviation count as 0 and 1 for images that are given by their pixels."""


@dataclass(frozen=True)
class Maker:
    """Everything that one feed depends on but its number.

    `evolved` are pixels in 0..1 that a lone image input is made of, in place of drawn ones.
    """

    inputs: Inputs
    sizes: Shapes
    kinds: Mapping[str, str]
    ranges: Mapping[str, Range]
    texts: own_text.Texts
    seed: int
    batch: int
    evolved: Images | None = None

    def feed(self, index: int, count: int) -> Feed:
        """Return the feed of this number; it does not depend on the others."""
        shapes = self.inputs.shapes(self.sizes, count)
        made: dict[str, Array] = {}
        for c in self.inputs.contents:
            rng = np.random.default_rng([self.seed, index, zlib.crc32(c.name.encode())])
            if c.what == "tokens":
                made[c.name] = self.texts.draw(c, rng, shapes[c.name], self.kinds[c.name])
            else:
                made[c.name] = self.ranges[c.name].applied(self._drawn(c, rng, shapes[c.name], index), c)
        return self._completed(made, shapes)

    def _drawn(self, c: Content, rng: np.random.Generator, shape: tuple[int, ...], index: int) -> Array:
        if self.evolved is None or c.what != "image":
            return _drawn(c, self.kinds[c.name], rng, shape, self.seed)
        first, samples = index * self.batch, images_made.measures(shape, c.channel)[0]
        return self._arranged(self.evolved[first : first + samples], c, shape)

    @staticmethod
    def _arranged(pixels: Images, c: Content, shape: tuple[int, ...]) -> Array:
        return images_made.laid_out(images_made.standardised(pixels, LIKE), c.channel, shape)

    def showing(self, pixels: Images) -> Iterator[Feed]:
        """Yield feeds in which the lone image input shows given pixels in 0..1, [n, channels, h, w]."""
        c = self.inputs.contents[0]
        for start in range(0, len(pixels), self.batch):
            part = pixels[start : start + self.batch]
            shapes = self.inputs.shapes(self.sizes, len(part))
            drawn = self._arranged(part, c, shapes[c.name])
            yield self._completed({c.name: self.ranges[c.name].applied(drawn, c)}, shapes)

    def _completed(self, made: dict[str, Array], shapes: Shapes) -> Feed:
        rest = [s for s in self.inputs.specs if s.name not in made]
        others, _ = synthesise(rest, {s.name: shapes[s.name] for s in rest}, self.seed)
        return {**made, **others}

    def feeds(self, count: int) -> Iterator[Feed]:
        """Yield feeds of so many samples in all."""
        size = self.batch if self.inputs.axes else 1
        for index, start in enumerate(range(0, count, size)):
            yield self.feed(index, min(size, count - start))


def _drawn(c: Content, kind: str, rng: np.random.Generator, shape: tuple[int, ...], seed: int) -> Array:
    """Return what an input holds with mean 0 and deviation 1, in the input's layout."""
    if kind == "noise":
        return rng.standard_normal(shape, np.float32)
    if c.what == "vectors":
        names = np.random.default_rng([seed, zlib.crc32(c.name.encode())])
        return audio_made.vectors(rng, audio_made.mixing_of(names, shape[-1]), shape)
    if c.what == "wave":
        length = max(shape)
        return audio_made.waves(rng, prod(shape) // length, length).reshape(shape)
    if c.what in ("spectrum", "series"):
        make = audio_made.spectra if c.what == "spectrum" else audio_made.series
        if c.channel is None:
            return make(rng, prod(shape[:-2]), *shape[-2:]).reshape(shape)
        across = 3 - c.channel
        made = make(rng, shape[0], shape[c.channel], shape[across])
        return made if c.channel == 1 else made.transpose(0, 2, 1)
    return _pictures(c, kind, rng, shape)


def _pictures(c: Content, kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return images in the input's layout; a fifth axis is time, along which the image moves."""
    channels = shape[c.channel] if c.channel is not None else 1
    rest = [n for k, n in enumerate(shape) if k != c.channel]
    *outer, height, width = rest
    samples, frames = (outer[0] if outer else 1), prod(outer[1:])
    images = images_made.images(kind, rng, samples, channels, (height, width))
    if frames > 1:
        moved = [np.roll(images, (k, 2 * k), (2, 3)) for k in range(frames)]
        images = np.stack(moved, 2).reshape(samples, channels, *outer[1:], height, width)
    if c.channel is None or len(shape) == 3:
        return images.reshape(shape)
    return np.moveaxis(images, 1, c.channel).reshape(shape)

"""What a model wants to be fed: given arrays are checked and cast, inputs that the data lacks are made up."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphprune import feeds
from graphprune.calibrate.samples import Feed, Samples, Source, of_items, rows_of, taken
from graphprune.errors import UsageError
from graphprune.inputs import InputSpec, plain, synthesise
from graphprune.sizes import BATCH, PAST, Shapes, Symbols, add_up, choose, input_symbols

Array = npt.NDArray[Any]
_NO_SAMPLES = re.compile(r"seq|len|time|frame|step|token|point|node|edge|height|width|^[thw]$", re.I)
_MAY_BE_INFINITE = re.compile(r"mask|bias")
_FLOATS = ("float", "bfloat")


@dataclass(frozen=True)
class Wanted:
    """The inputs of a model, and how data is brought into their form.

    `specs` are in the model's order. `axes` has the axis that counts samples for each input that leaves one open.
    `natural` are sizes for what neither the model nor the data says; None to work them out when they are needed.
    """

    model: ir.Model
    specs: tuple[InputSpec, ...]
    symbols: Symbols
    axes: dict[str, int]
    natural: Mapping[str, tuple[int, ...]] | None
    seed: int

    @staticmethod
    def of(
        model: ir.Model,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        bounds: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> Wanted:
        """Read the inputs of a model; `bounds` are how many rows the tables have that inputs index."""
        symbols = input_symbols(model)
        specs = tuple(feeds.specs(model, bounds or {}))
        if not specs:
            raise UsageError("the model has no inputs: there is nothing to calibrate with")
        return Wanted(model, specs, symbols, sample_axes(symbols), shapes, seed)

    def rank(self, name: str) -> int | None:
        """Return how many axes an input has, None if the model does not say."""
        value = next(v for v in self.model.graph.inputs if v.name == name)
        return None if value.shape is None else len(value.shape)

    @cached_property
    def sizes(self) -> Shapes:
        """Sizes of all inputs where nothing else is known: those given, else one sample of usual size."""
        natural = dict(self.natural or {})
        if natural.keys() >= self.symbols.keys():
            return natural
        return choose(self.model, natural).natural_inputs

    def complete(self, given: Mapping[str, Any], where: str, number: int = 0) -> Feed:
        """Return a feed for the model: what is given, checked, and the rest made up (from `number`, per sample).

        >>> Wanted.of(model).complete({"x": image}, "cat.png")["x"].shape  # doctest: +SKIP
        (1, 3, 224, 224)

        Raises UsageError, which begins with `where`.
        """
        return self.filled(self.fit(given, where), number)

    def fit(self, given: Mapping[str, Any], where: str) -> Feed:
        """Check and cast given arrays; raises UsageError for wrong names, types, sizes, NaN or none at all."""
        if not given:
            raise UsageError(f"{where}: holds no arrays; the model's inputs are {self._names()}")
        for name in given:
            if name not in self.symbols:
                raise UsageError(f"{where}: the model has no input {name!r}; its inputs are {self._names()}")
        feed = {s.name: self._fit(s, numpy_of(given[s.name]), where) for s in self.specs if s.name in given}
        try:
            rows_of(feed, self.axes)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        return feed

    def filled(self, feed: Feed, number: int = 0) -> Feed:
        """Return a feed with the inputs it lacks made up."""
        return {**self._made(feed, number)[0], **feed} if len(feed) < len(self.specs) else feed

    def said(self, given: Mapping[str, Any], feed: Feed) -> tuple[str, ...]:
        """Say how data was brought into the model's form: types cast, an axis added, inputs made up."""
        found = []
        for name, value in given.items():
            before, after = numpy_of(value), feed[name]
            if before.dtype != after.dtype and after.dtype.kind != "O":
                found.append(f"{name}: {before.dtype} data cast to {after.dtype}")
            if before.ndim < after.ndim:
                found.append(f"{name}: an axis of one sample put before the data")
        return (*found, *self.said_missing(feed))

    def said_missing(self, feed: Feed) -> tuple[str, ...]:
        """Say what is made up beside a feed."""
        if len(feed) == len(self.specs):
            return ()
        _, phrases = self._made(feed, 0)
        missing = [s.name not in feed for s in self.specs]
        found = [phrase for phrase, is_missing in zip(phrases, missing, strict=True) if is_missing]
        return tuple(f"{phrase} (made up, as the data has none)" for phrase in found)

    def _made(self, feed: Feed, number: int) -> tuple[dict[str, Array], tuple[str, ...]]:
        """Make up all inputs, as lengths depend on the others, and return those that are missing; phrases of all."""
        made, phrases = synthesise(self.specs, self._sizes_beside(feed), self.seed + number)
        return {name: array for name, array in made.items() if name not in feed}, phrases

    def _sizes_beside(self, feed: Feed) -> Shapes:
        """Return sizes for all inputs: of the data where it has them, no past before text, else the usual ones."""
        bound = {
            n: size
            for name, array in feed.items()
            for n, size in zip(self.symbols[name] or array.shape, array.shape, strict=True)
            if isinstance(n, str)
        }
        rows = rows_of(feed, {k: v for k, v in self.axes.items() if k in feed})
        begins = any(s.name in feed and is_tokens(s) and feed[s.name].shape[-1] > 1 for s in self.specs)
        fresh: dict[str, int] = {}
        for name, sizes in self.symbols.items():
            for axis, n in enumerate(sizes):
                if isinstance(n, int) or n in bound or n in fresh:
                    continue
                is_past = begins and axis and PAST.search(f"{name} {n}") and not BATCH.search(n)
                fresh[n] = rows if axis == self.axes.get(name) else 0 if is_past else self.sizes[name][axis]
        everything = {**bound, **fresh}
        add_up(self.symbols, everything)
        everything.update(bound)
        return {
            name: feed[name].shape
            if name in feed
            else tuple(everything[n] if isinstance(n, str) else n for n in sizes)
            for name, sizes in self.symbols.items()
        }

    def _names(self) -> str:
        return ", ".join(repr(s.name) for s in self.specs)

    def _fit(self, spec: InputSpec, array: Array, where: str) -> Array:
        what = f"{where}: input {spec.name!r}"
        if self.rank(spec.name) is not None:
            array = self._shaped(spec, array, what)
        if not array.size and not PAST.search(spec.name):
            raise UsageError(f"{what} is empty: its shape is {list(array.shape)}")
        cast = _cast(array, spec, what)
        if cast.dtype.name.startswith(_FLOATS):
            wrong = np.isnan(cast) if _MAY_BE_INFINITE.search(plain(spec.name)) else ~np.isfinite(cast)
            if wrong.any():
                place = tuple(int(k) for k in np.argwhere(wrong)[0])
                kind = "NaN" if np.isnan(cast[place]) else "an infinite number"
                if np.isfinite(array[place]):
                    raise UsageError(f"{what} has {array[place]:.4g} at {list(place)}, too large for {cast.dtype}")
                raise UsageError(f"{what} has {kind} at {list(place)}: remove the sample or repair it")
        if spec.bound is not None and cast.dtype.kind in "iu" and cast.size and int(cast.max()) >= spec.bound:
            raise UsageError(
                f"{what} has {int(cast.max())}, but indexes a table of {spec.bound} rows: the data (or the tokenizer) "
                "is not this model's"
            )
        return cast

    def _shaped(self, spec: InputSpec, array: Array, what: str) -> Array:
        """Put an axis of one sample before data that has none; raise where sizes do not fit."""
        want, given = self.symbols[spec.name], array.shape
        axis = self.axes.get(spec.name, 0)
        if not want and array.size == 1:
            return array.reshape(())
        if array.ndim == len(want) - 1 and (spec.name in self.axes or want[0] == 1):
            array = np.expand_dims(array, axis)
        if array.ndim != len(want):
            raise UsageError(
                f"{what} has {len(given)} axes {list(given)}, the model takes {len(want)}: [{written(want)}]"
            )
        if any(isinstance(n, int) and n != m for n, m in zip(want, array.shape, strict=True)):
            raise UsageError(f"{what} has the shape {list(given)}, the model takes [{written(want)}]")
        return array


def _cast(array: Array, spec: InputSpec, what: str) -> Array:
    """Return an array in the model's type: floats of another width, integers where exact, nothing else."""
    want, have = spec.dtype, array.dtype
    if want == have:
        return array
    if want.kind == "O" and have.kind in "OUST":
        return array.astype(object)
    if want.name.startswith(_FLOATS) and have.name.startswith(_FLOATS):
        with np.errstate(over="ignore"):
            return array.astype(want)
    if want.kind in "iub" and have.kind in "iub":
        cast = array.astype(want)
        if np.array_equal(cast, array):
            return cast
        raise UsageError(f"{what} is {have} and holds numbers that {want} does not have, such as {array.max()}")
    raise UsageError(f"{what} is {have}, the model takes {want}: convert it, as its scale cannot be guessed")


def by_rows(
    rows: Sequence[int], feed: Callable[[int], Feed], wanted: Wanted, source: Source, assumed: tuple[str, ...]
) -> Samples:
    """Return the samples of feeds that can be read again: `feed(i)` is the i-th, which holds `rows[i]` of them."""
    items = [(i, row) for i, count in enumerate(rows) for row in range(count)]

    def load(item: tuple[int, tuple[int, int]]) -> Feed:
        number, (i, row) = item
        return wanted.filled(taken(feed(i), [row], wanted.axes), number)

    return of_items(list(enumerate(items)), load, source, assumed, wanted.axes)


def numpy_of(value: Any) -> Array:
    """Return an array as numpy has it; tensors of frameworks are taken off their device and their graph."""
    if isinstance(value, np.ndarray):
        return value
    for step in ("detach", "cpu"):
        value = getattr(value, step)() if callable(getattr(value, step, None)) else value
    return np.asarray(value)


def written(shape: Sequence[int | str | None]) -> str:
    """Write a shape with open sizes as question marks.

    >>> written(("batch", 3, "?4:2", "?4:3"))
    '?, 3, ?, ?'
    """
    return ", ".join(str(n) if isinstance(n, int) else "?" for n in shape)


def sample_axes(symbols: Symbols) -> dict[str, int]:
    """Return the axis that counts samples of each input: the first if it is open, or the one that is named so.

    >>> sample_axes({"x": ("batch", 3, "height"), "state": (2, "batch", 64), "rate": (), "fixed": (1, 3)})
    {'x': 0, 'state': 1}
    """
    first = {s[0] for s in symbols.values() if s and isinstance(s[0], str)}
    counting = {n for n in first if BATCH.search(n) or not _NO_SAMPLES.search(n)}
    out = {}
    for name, sizes in symbols.items():
        for axis, n in enumerate(sizes):
            if isinstance(n, str) and (n in counting if axis == 0 or n in counting else bool(BATCH.search(n))):
                out[name] = axis
                break
    return out


def is_tokens(spec: InputSpec) -> bool:
    """Return whether an input takes token ids, going by its name and type.

    >>> is_tokens(InputSpec("input_ids", np.dtype("int64"), ("b", "s")))
    True
    """
    name = plain(spec.name)
    other = re.search(r"mask|_type_|segment|_pos(itions?)?_|len", name)
    return spec.dtype.kind in "iu" and len(spec.shape) in (1, 2) and bool(
        re.search(r"_ids?_|token|_words?_", name) and not other
    )


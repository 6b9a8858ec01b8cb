"""At which input sizes a model is looked at: two choices for every axis that the file leaves open.

The `traced` sizes are primes that nothing else in the model shares, so that a size says where it comes from; the
`natural` ones (one image of 224 x 224, 16 tokens) are what costs and times are given for. What differs between the
two is what depends on the input. Where a network accepts only some sizes (multiples of 32, total = past + new), other
choices are tried until no operator objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import onnx_ir as ir

from graphprune.errors import UsageError
from graphprune.open_sizes import open_sizes
from graphprune.shapes import Observed, World, infer

Shapes: TypeAlias = "dict[str, tuple[int, ...]]"
Symbols: TypeAlias = "dict[str, tuple[int | str, ...]]"
_PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67)
_OTHER_PRIMES = 2003
_LARGEST = 20_000_000  # elements of an input that is made up
_SPATIAL = (96, 160, 128, 192)
BATCH = re.compile(r"batch|^n$|^b$|^bs$|^nt$|^ni$|num_samples|^unk__|^0$", re.I)
PAST = re.compile(r"past|cache|history", re.I)
_TOTAL = re.compile(r"total|\+", re.I)
AUDIO = re.compile(r"audio|wave|speech|input_values|signal|samples", re.I)


@dataclass(frozen=True)
class Worlds:
    """A model at its traced and at its natural input sizes."""

    traced_inputs: Shapes
    natural_inputs: Shapes
    traced: World
    natural: World

    @property
    def has_dynamic(self) -> bool:
        return self.traced_inputs != self.natural_inputs

    @property
    def depends_on_data(self) -> bool:
        """Whether some sizes depend on the content of inputs."""
        return bool(self.traced.open_axes)

    @property
    def sizes_unknown(self) -> bool:
        """Whether sizes depend on the content of inputs, or may, because no rule tells them."""
        return bool(self.traced.open_axes or self.traced.conflicts or self.natural.conflicts)


def real_inputs(model: ir.Model) -> list[ir.Value]:
    """Return the inputs that a caller must give: not those with a default among the initializers."""
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def input_symbols(model: ir.Model) -> Symbols:
    """Return each real input's sizes; open ones as names, unnamed ones named by rank and position."""
    out: Symbols = {}
    for value in real_inputs(model):
        if value.shape is None or not isinstance(value.type, ir.TensorType):
            out[value.name or ""] = ()
            continue
        sizes: list[int | str] = []
        for k, n in enumerate(value.shape):
            name = getattr(n, "value", None)
            if isinstance(n, int) and n > 0:
                sizes.append(n)
            else:
                sizes.append(str(name) if name else ("0" if k == 0 else f"?{len(value.shape)}:{k}"))
        if len(sizes) == 3 and sizes[1] == "?3:1" and isinstance(sizes[0], int) and isinstance(sizes[2], int):
            sizes[1] = "0"  # a recurrent state: layers, samples, units
        out[value.name or ""] = tuple(sizes)
    return out


def check_given(symbols: Symbols, given: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UsageError if a given input shape does not fit the model's."""
    for name, shape in given.items():
        if name not in symbols:
            raise UsageError(f"no input named {name!r}; the model's inputs are {', '.join(sorted(symbols)) or 'none'}")
        if 0 in shape:
            raise UsageError(f"input {name!r} is given the shape {list(shape)}, which holds nothing to run on")
        want = symbols[name]
        if want and (
            len(want) != len(shape) or any(isinstance(w, int) and w != s for w, s in zip(want, shape, strict=True))
        ):
            raise UsageError(f"input {name!r} has shape {list(want)}, which {list(shape)} does not fit")


def choose(
    model: ir.Model,
    given: Mapping[str, tuple[int, ...]] | None = None,
    observe: Observer | None = None,
    batch: int | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Worlds:
    """Return the model at its traced and natural sizes.

    `given` input shapes, the `batch`, and open `sizes` by their names are taken as natural. Raises UsageError for a
    shape that does not fit, and for a name that no open size has.
    """
    given = dict(given or {})
    symbols = input_symbols(model)
    check_given(symbols, given)
    named = open_sizes(symbols, sizes or {})
    shapes_n, world_n, seen_n = _best(model, [{**s, **given} for s in _natural(symbols, batch or 1, named)], observe)
    if any(isinstance(n, str) for sizes in symbols.values() for n in sizes):
        candidates = [*_traced(symbols, 0), *_traced(symbols, 1), *_scaled(symbols, shapes_n)]
        traced = [c for c in candidates if not _collides(symbols, c, shapes_n)] or candidates
        shapes_t, world_t, _ = _best(model, traced, observe, world_n)
    else:
        shapes_t, world_t = shapes_n, world_n
    if world_n.open_axes:
        world_n = infer(model, shapes_n, observed=seen_n, first_prime=_OTHER_PRIMES)
    return Worlds(shapes_t, shapes_n, world_t, world_n)


Observer: TypeAlias = Callable[[ir.Model, Shapes, World], Observed]


def _best(
    model: ir.Model, candidates: list[Shapes], observe: Observer | None, other: World | None = None
) -> tuple[Shapes, World, Observed]:
    """Return the first candidate that no operator objects to and that leaves no axis thin, else the nearest to it."""
    best: tuple[Shapes, World, Observed] | None = None
    fewest = (0, 0)
    tried: list[Shapes] = []
    for shapes in candidates:
        if shapes in tried:
            continue
        tried.append(shapes)
        world = infer(model, shapes)
        if observe is not None and world.conflicts:
            seen = observe(model, shapes, world)
            if seen:
                return shapes, infer(model, shapes, observed=seen), seen
        faults = len(world.conflicts), len(thin(world, other)) if other is not None else 0
        if best is None or faults < fewest:
            best, fewest = (shapes, world, {}), faults
        if fewest == (0, 0):
            break
    assert best is not None
    return best


def thin(world: World, other: World) -> set[str]:
    """Return values with an axis that depends on the input and has size 0 or 1 here.

    Such an axis could be broadcast, squeezed or dropped here and be an axis like any other elsewhere.
    """
    return {
        name
        for name, shape in world.shapes.items()
        if any(n <= 1 and n != m for n, m in zip(shape, other.shapes.get(name, shape), strict=False))
    }


def _assign(symbols: Symbols, size_of: Callable[[str, str, int, int], int]) -> Shapes:
    """Give every open size the number that `size_of(input, symbol, axis, rank)` says; totals are sums."""
    out: Shapes = {}
    by_symbol: dict[str, int] = {}
    for name, sizes in symbols.items():
        for k, n in enumerate(sizes):
            if isinstance(n, str):
                by_symbol.setdefault(n, size_of(name, n, k, len(sizes)))
    add_up(symbols, by_symbol)
    for name, sizes in symbols.items():
        out[name] = tuple(by_symbol[n] if isinstance(n, str) else n for n in sizes)
    return out


def add_up(symbols: Symbols, by_symbol: dict[str, int]) -> None:
    """Where positions are carried in from before, the length of a mask is theirs plus that of the new ones."""
    past = {
        n
        for name, sizes in symbols.items()
        for n in sizes[1:]
        if isinstance(n, str) and PAST.search(f"{name} {n}") and not _TOTAL.search(n)
    }
    new = {s[-1] for name, s in symbols.items() if re.search(r"ids|tokens", name, re.I) and len(s) == 2}
    totals = {
        s[-1]
        for name, s in symbols.items()
        if s and isinstance(s[-1], str) and (_TOTAL.search(s[-1]) or ("mask" in name.lower() and s[-1] not in new))
    }
    if not past or not totals or not new:
        return
    carried = max(by_symbol[n] for n in past)
    arriving = max(by_symbol[n] if isinstance(n, str) else n for n in new)
    by_symbol.update(dict.fromkeys(past - totals, carried))
    by_symbol.update(dict.fromkeys(totals, carried + arriving))


def alternatives(model: ir.Model, natural: Shapes) -> Iterator[Shapes]:
    """Yield other input sizes to try where the model does not run at the natural ones: larger, then smaller."""
    symbols = input_symbols(model)
    for factor in (4, 16, 32, 64, 1000, 0.5, 0.25):
        sizes = {
            name: tuple(
                max(int(n * factor), 1) if isinstance(s, str) and k and not BATCH.search(s) else n
                for k, (s, n) in enumerate(zip(symbols[name] or shape, shape, strict=True))
            )
            for name, shape in natural.items()
        }
        if all(prod(shape) <= _LARGEST for shape in sizes.values()):
            yield sizes


def is_spatial(symbols: Symbols, name: str, axis: int) -> bool:
    """Return whether an axis is a height or width: of a four-axis input, neither samples nor few channels."""
    sizes = symbols[name]
    if len(sizes) != 4 or axis == 0:
        return False
    last = isinstance(sizes[3], int) and sizes[3] <= 4 and not isinstance(sizes[1], int)
    return axis in ((1, 2) if last else (2, 3))


def _natural(symbols: Symbols, batch: int, named: Mapping[str, int]) -> list[Shapes]:
    def size(name: str, symbol: str, axis: int, rank: int) -> int:
        if symbol in named:
            return named[symbol]
        if axis == 0 or BATCH.search(symbol):
            return batch
        if PAST.search(symbol):
            return 8
        if is_spatial(symbols, name, axis):
            return 224
        if rank <= 3 and AUDIO.search(f"{name} {symbol}") and axis == rank - 1:
            return 16000
        return 16

    def other(sizes: Mapping[int, int]) -> Shapes:
        return _assign(symbols, lambda n, s, k, r: sizes.get(f := size(n, s, k, r), f) if s not in named else named[s])

    return [other({}), other({224: 64}), other({224: 320, 16: 64})]


def _collides(symbols: Symbols, traced: Shapes, natural: Shapes) -> bool:
    """Return whether an open axis has one size in both choices, so that nobody could see that it is open."""
    return any(
        isinstance(n, str) and traced[name][k] == natural[name][k]
        for name, sizes in symbols.items()
        for k, n in enumerate(sizes)
    )


def _traced(symbols: Symbols, other: int) -> Iterator[Shapes]:
    """Yield choices of primes for open sizes; `other` is 1 for a second set of them."""
    names = list(dict.fromkeys(n for sizes in symbols.values() for n in sizes if isinstance(n, str)))
    rest = [n for n in names if not BATCH.search(n)]
    batch, first = (3, 5)[other], 5 * other

    def by_name(name: str, symbol: str, axis: int, rank: int) -> int:
        return batch if axis == 0 or symbol not in rest else _PRIMES[(first + rest.index(symbol)) % len(_PRIMES)]

    def by_position(name: str, symbol: str, axis: int, rank: int) -> int:
        return batch if axis == 0 else _PRIMES[(first + axis) % len(_PRIMES)]

    def spatial(name: str, symbol: str, axis: int, rank: int) -> int:
        if is_spatial(symbols, name, axis):
            return _SPATIAL[axis % 2 + 2 * other]
        return by_name(name, symbol, axis, rank)

    def large(name: str, symbol: str, axis: int, rank: int) -> int:
        if axis == 0 or symbol not in rest:
            return batch
        return 320 + 64 * other if is_spatial(symbols, name, axis) else 48 + 16 * other

    for size_of in (by_name, by_position, spatial, large):
        yield _assign(symbols, size_of)


def _scaled(symbols: Symbols, natural: Shapes) -> Iterator[Shapes]:
    """The natural sizes, with open ones doubled, then with only the samples doubled."""
    for only_batch in (False, True):
        yield {
            name: tuple(
                n * 2 if isinstance(s, str) and (k == 0 or not only_batch) else n
                for k, (s, n) in enumerate(zip(symbols[name] or shape, shape, strict=True))
            )
            for name, shape in natural.items()
        }

"""What goes past a layer and is added to its outputs: a correction of the layer makes up for errors in that, too.

Source: He et al., Channel pruning for accelerating very deep neural networks (ICCV 2017), where branches join: the last
layer of a residual branch is fitted to Y1 - Y1' + Y2, with Y2 its own outputs, Y1 the shortcut's, and Y1' that of the
shortcut in the pruned network.
"""

from __future__ import annotations

from typing import NamedTuple

from graphprune.groups import Coupling
from graphprune.ops import RESIDUALS

_FAR = 3  # sums with constants between a layer and the sum with what goes past it


class Beside(NamedTuple):
    """A sum `join` that gets a layer's outputs, and what is added to them there: its input `other`, named `value`."""

    join: str
    other: int
    value: str


def beside(coupling: Coupling, output: str) -> Beside | None:
    """Return what is added to a value of the dense model, if nothing else is done with it; constants do not count.

    >>> beside(coupling, "/layer1/conv2/Conv_output_0")  # doctest: +SKIP
    Beside(join='/layer1/Add', other=1, value='/layer1/Relu_output_0')
    """
    graph = coupling.graph
    shapes = graph.worlds.natural.shapes
    name = output
    for _ in range(_FAR):
        reading = [op for op in graph.ops for o in op.inputs if o is not None and o.name == name]
        if len(reading) != 1 or name in graph.outputs or reading[0].bodies:
            return None
        op = reading[0]
        rule = RESIDUALS.get(op.domain, op.type, op.version)
        made = rule(op) if rule is not None else None
        if made is None or op.name in graph.worlds.natural.times:
            return None
        others = [k for k in made.summands if op.x(k).name != name and not _constant(coupling, op.x(k).name)]
        if len(others) == 1:
            value = op.x(others[0]).name
            alike = value in shapes and shapes[value] == shapes.get(output)
            return Beside(op.name, others[0], value) if alike else None
        if others or op.output(0) is None:
            return None
        name = op.y().name
    return None


def _constant(coupling: Coupling, name: str) -> bool:
    return name in coupling.graph.sources or name in coupling.graph.constants

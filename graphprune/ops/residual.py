"""Residual sums: which inputs of a node are added up, and what the node becomes without one of them.

A branch that ends in such a sum can be bypassed. What the sum is then made of are parts: an input, or several added up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from graphprune.ops.registry import Op, Row, row

MICROSOFT = "com.microsoft"
Part: TypeAlias = "tuple[int, ...]"
"""Numbers of inputs that are added up."""


@dataclass(frozen=True)
class Instead:
    """What a node becomes: `totals` are outputs that are sums of inputs from now on.

    `inputs` are those of the node that is left, in order (None: an absent one); none: it goes. `attributes` change.
    """

    totals: Mapping[int, Part] = field(default_factory=dict)
    inputs: tuple[Part | None, ...] = ()
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Residual:
    """Inputs that are added up (`summands`), and what becomes of the node without the k-th input (`without(k)`)."""

    summands: Part
    without: Callable[[int], Instead]


ResidualRule: TypeAlias = "Callable[[Op], Residual | None]"


def plain_sum(op: Op) -> Residual | None:
    """A sum of inputs and nothing else."""
    given = tuple(k for k, o in enumerate(op.inputs) if o is not None)

    def without(dropped: int) -> Instead:
        left = tuple(k for k in given if k != dropped)
        return Instead(totals={0: left}) if len(left) == 1 else Instead(inputs=tuple((k,) for k in left))

    return Residual(given, without) if len(given) > 1 else None


def skip_norm(parameters: int) -> ResidualRule:
    """A sum of two inputs and a bias behind the `parameters`, normalised; the fourth output is the sum itself.

    Without one summand the other counts twice: norm(2 x; 4 epsilon) = norm(x; epsilon), exactly. So the operator stays,
    and no opset needs to have another.
    """

    def rule(op: Op) -> Residual | None:
        if any(o is not None for o in op.outputs[1:3]):
            return None
        scales = tuple((k,) if op.input(k) is not None else None for k in range(2, 2 + parameters))
        bias = (2 + parameters,) if op.input(2 + parameters) is not None else ()

        def without(dropped: int) -> Instead:
            left = (1 - dropped, *bias)
            epsilon = {"epsilon": 4 * float(op.attr("epsilon", 1e-12))}
            return Instead({3: left} if op.output(3) is not None else {}, (left, left, *scales), epsilon)

        return Residual((0, 1), without)

    return rule


RESIDUALS: tuple[Row[ResidualRule], ...] = (
    row(plain_sum, "Add", since=7),
    row(plain_sum, "Sum", since=8),
    row(skip_norm(2), "SkipLayerNormalization", domain=MICROSOFT),
    row(skip_norm(1), "SkipSimplifiedLayerNormalization", domain=MICROSOFT),
)

IDENTITY, MULTIPLY = "Identity", "Mul"
"""What hands a value on, and what multiplies one by zero to see what is lost without it."""

PASSING = frozenset(
    [
        "Identity", "Cast", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "QuantizeLinear",
        "DequantizeLinear",
    ]
)
"""What a value may go through on its way past a branch, besides constants that scale or shift it."""

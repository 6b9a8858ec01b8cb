"""Which repair rows confirm that it was not fitted to (check rows): a refit of some strength, bias alone, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphprune.reconstruct.linear import Indices, Matrix, Vector
from graphprune.reconstruct.ridge import Moments, Refit, refitted, strengths, unchanged

_AS_GOOD = 1.005
_NONE = np.zeros(0)


def choose_strength(
    fit: Moments, check: Moments, weight: Matrix, lams: Sequence[float] | None = None, biased: bool = True
) -> float | None:
    """Return the strength that does best on check rows, None where no refit beats the old weights there.

    The old weights have their bias compensated. Of strengths that are as good, within half a percent, the strongest
    is taken.
    """
    return attempted(fit, check, weight, lams, biased).choice().lam


@dataclass(frozen=True)
class Choice:
    """A repair that check rows chose: a refit of a strength, the compensated bias alone (`moved`), or nothing.

    Errors are fractions: of the repair, and of removal without any.
    """

    lam: float | None
    moved: bool
    error: float
    plain: float


@dataclass(frozen=True, eq=False)
class Attempts:
    """What repairs of a layer do on check rows, output by output: so that they can be chosen for some outputs.

    `errors` has a vector [O] for each of `lams`, ascending; `moved` is with the bias compensated only, `plain` without
    any repair; `check` has the energies and means of the outputs there.
    """

    lams: tuple[float, ...]
    errors: tuple[Vector, ...]
    moved: Vector
    plain: Vector
    check: tuple[Vector, Vector]
    biased: bool

    def choice(self, outputs: Indices | slice = slice(None)) -> Choice:
        """Return the best repair for these outputs.

        Of strengths that are as good, within half a percent, the strongest is taken.
        """
        energies, target = (part[outputs] for part in self.check)
        unit = Moments(_NONE, _NONE, _NONE, target, energies, 0).scale(self.biased)
        limit, plain = float(self.moved[outputs].sum()), float(self.plain[outputs].sum())
        found = [(float(e[outputs].sum()), lam) for e, lam in zip(self.errors, self.lams, strict=True)]
        found = [(e, lam) for e, lam in found if np.isfinite(e)]
        least = min((e for e, _ in found), default=np.inf)
        if least < limit:
            good = least + abs(least) * (_AS_GOOD - 1)  # an error of nothing may come out negative
            error, lam = next(f for f in reversed(found) if f[0] <= min(good, limit))
            if error < plain:
                return Choice(lam, True, error / unit, plain / unit)
        if self.biased and limit < plain:
            return Choice(None, True, limit / unit, plain / unit)
        return Choice(None, False, plain / unit, plain / unit)


def attempted(
    fit: Moments, check: Moments, weight: Matrix, lams: Sequence[float] | None = None, biased: bool = True
) -> Attempts:
    """Return what refits of weights [K, O] and the compensated bias do on check rows."""
    old = weight.astype(np.float64, copy=False)
    tried, errors = [], []
    for lam in sorted(strengths(fit, lams)):
        made = refitted(fit, old, lam, biased)
        if made.lam is not None:
            tried.append(lam)
            errors.append(check.errors(made.weight, made.bias))
    moved = check.errors(old, unchanged(fit, old, biased).bias)
    return Attempts(tuple(tried), tuple(errors), moved, check.errors(old), (check.energies, check.target), biased)


def chosen_repair(rows: Moments, weight: Matrix, choice: Choice, biased: bool = True) -> Refit:
    """Return the repair that was chosen, made from rows: of both parts, or of those to fit to only."""
    if choice.lam is not None:
        made = refitted(rows, weight, choice.lam, biased)
    elif choice.moved:
        made = unchanged(rows, weight, biased)
    else:
        made = Refit(weight, np.zeros(len(rows.target)), None)
    return replace(made, error=choice.error, plain=choice.plain)


def repair(
    fit: Moments, check: Moments, weight: Matrix, lams: Sequence[float] | None = None, biased: bool = True, *,
    apart: bool = False,
) -> Refit:
    """Return the best repair that check rows confirm: a refit, else the compensated bias, else nothing.

    A refit that is used is made again from the rows of both parts, with the strength chosen, unless these are to be
    kept `apart`. `error` and `plain` are those on the check rows, by the weights fitted without them.
    """
    old = weight.astype(np.float64, copy=False)
    choice = attempted(fit, check, old, lams, biased).choice()
    return chosen_repair(fit if apart else fit.merged(check), old, choice, biased)


def confirmed(
    fit: Moments, check: Moments | None, weight: Matrix, lams: Sequence[float] | None = None, biased: bool = True, *,
    apart: bool = False,
) -> Refit:
    """Return the repair that check rows confirm; nothing is repaired where there are none."""
    if check is not None:
        return repair(fit, check, weight, lams, biased, apart=apart)
    error = fit.error(weight) / fit.scale(biased)
    return Refit(weight, np.zeros(len(fit.target)), None, error, error)


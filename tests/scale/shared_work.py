"""What several workers learn of a model against what one process does."""

from __future__ import annotations

import layered
import numpy as np
from threadpoolctl import threadpool_limits

import graphprune
from graphprune.calibrate.knowledge import Knowledge, learn
from graphprune.scale import Pool


def learnt(pool: Pool, net: layered.Net, **options: int) -> Knowledge:
    """Learn of a net on 100 samples, with one thread, since two round products in float32 in another way."""
    analysis = graphprune.analyse(net.model(), graphprune.Looking(threads=1))
    with threadpool_limits(1):
        return learn(analysis, layered.samples_of(analysis, 100), pool=pool, **options)


def compare_statistics(pool: Pool, *nets: layered.Net, **options: int) -> None:
    """Assert that the sums are the same, but for rounding in float64."""
    for net in nets or (layered.conv(), layered.deep(3)):
        one, many = learnt(Pool(), net, **options).stats, learnt(pool, net, **options).stats
        assert one.samples == many.samples == 100 and 0 < one.told == many.told < 20
        assert one.fit.keys() == many.fit.keys() == one.check.keys()
        for left, right in ((one.fit, many.fit), (one.check, many.check)):
            for key, gram in left.items():
                assert gram.rows == right[key].rows > 0
                for name in ("second", "first", "absolute", "zeros"):
                    a, b = (np.asarray(getattr(g, name)) for g in (gram, right[key]))
                    np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12 * np.abs(a).max())

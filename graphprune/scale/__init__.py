"""Work over many workers: one description of where it is done, and one way to map a pure function over items."""

from graphprune.scale.pool import Lost, Pool

__all__ = ["Lost", "Pool"]

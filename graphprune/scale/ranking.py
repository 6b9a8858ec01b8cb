"""Results of a sweep side by side: one row each, ranked by how fast the model is and how near to the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphprune import writing

Row = dict[str, Any]
_SHOWN = ("criterion", "allocation", "repair", "seed")


def rows_of(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each record: models in the order given, the best results of each first, errors last.

    A result's `rank` is 1 + the number of results of the same model that are at least as fast and as near to the dense
    model, and better in one of the two. Fast is the measured speed-up where all of a model's results were timed, and
    then counts as equal inside of the noise band; else it is the fraction of MACs that is left.
    """
    rows = [_row(record) for record in records]
    order = list(dict.fromkeys(row["model"] for row in rows))
    out: list[Row] = []
    for model in order:
        own = [row for row in rows if row["model"] == model]
        good = [row for row in own if not row["error"]]
        timed = all(row["speedup"] for row in good)
        places = [_place(row, timed) for row in good]
        for row, place in zip(good, places, strict=True):
            row["rank"] = 1 + sum(_beats(other, place) for other in places)
        ranked = sorted(zip(good, places, strict=True), key=lambda pair: (pair[0]["rank"], pair[1]))
        out += [row for row, _ in ranked] + [row for row in own if row["error"]]
    return out


def _place(row: Row, timed: bool) -> tuple[float, float, float]:
    """Return cost, loss, and the fraction by which costs are uncertain."""
    loss = float("inf") if row["loss"] is None else float(row["loss"])
    return (1 / row["speedup"], loss, row["noise_band"] or 0.0) if timed else (row["macs"], loss, 0.0)


def _beats(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    noise = max(one[2], other[2])
    slower, faster = one[0] > other[0] * (1 + noise), one[0] < other[0] * (1 - noise)
    return not slower and one[1] <= other[1] and (faster or one[1] < other[1])


def _row(record: Mapping[str, Any]) -> Row:
    options, report = record["options"], record.get("report") or {}
    before, after = report.get("before"), report.get("after")
    timing = record.get("timing") or {}
    kept = {k: after[k] / before[k] if before and before[k] else None for k in ("macs", "parameters", "bytes")} \
        if after else dict.fromkeys(("macs", "parameters", "bytes"))
    return {
        "model": record["model"],
        "budget": budget_words(options),
        **{name: options.get(name) for name in _SHOWN},
        **kept,
        "speedup": timing.get("speedup"),
        "noise_band": timing.get("noise_band"),
        **_apart(report.get("divergence")),
        "rank": None,
        "seconds": record.get("seconds"),
        "reused": record.get("reused", False),
        "key": record["key"],
        "error": record["error"],
    }


def _apart(divergence: Mapping[str, Any] | None) -> Row:
    """Return how far outputs are from the dense model's; of several outputs the sum of losses, and the worst."""
    outputs = divergence["after"] if divergence else []
    if not outputs:
        return {"loss": None, "cosine": None, "agree": None, "damaged": None}
    agree = [o["agree"] for o in outputs if o["agree"] is not None]
    return {
        "loss": sum(o["relative"] ** 2 if o["kl"] is None else o["kl"] for o in outputs),
        "cosine": min(o["cosine"] for o in outputs),
        "agree": min(agree) if agree else None,
        "damaged": divergence["damaged"] if divergence else None,
    }


def budget_words(options: Mapping[str, Any]) -> str:
    """Return a budget as it is typed.

    >>> budget_words({"targets": {"macs": 0.5, "params": 0.6}}), budget_words({"sparsity": 0.3})
    ('macs=0.5,params=0.6', 'sparsity=0.3')
    """
    if options.get("targets"):
        return ",".join(f"{kind}={fraction:g}" for kind, fraction in options["targets"].items())
    return ",".join(f"{name}={options[name]:g}" for name in ("sparsity", "speedup") if options.get(name) is not None)


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as a table that spreadsheets read."""
    return writing.as_csv(rows, list(rows[0])) if rows else ""


def varying(rows: Sequence[Row]) -> list[str]:
    """Return which options differ between rows, and so are worth a column."""
    return [name for name in _SHOWN if len({str(row[name]) for row in rows}) > 1]

"""How much of a model's quality is left, in words: calibration, repair, divergence by stage, the user's own metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from graphprune.report.tables import table_of

_SHOWN = 8
_MOST = 10.0
_MOMENTS = (("before", "before"), ("before_repair", "before repair"), ("after", "after"))
_NUMBERS = ("KL", "agree", "cosine", "relative error")


def print_repair(console: Console, record: Mapping[str, Any], verbose: bool = False) -> None:
    """Print what was calibrated with, what repair did, and how far the outputs are from the dense model's."""
    if record.get("remark"):
        console.print(record["remark"])
    data, repair, apart = (record.get(k) for k in ("calibration", "repair", "divergence"))
    if data:
        console.print(f"calibrated on {data['used']} samples ({data['source']})")
    if not repair:
        return
    if repair["layers"]:
        console.print(f"repair: {repair['mode']}, {len(repair['layers'])} layers; {layers_words(repair)}")
    for said in repair["notes"]:
        console.print(f"repair: {said}")
    if verbose and repair["layers"]:
        console.print(_layers_table(repair["layers"]))
    if not (data and apart):
        return
    if apart["stages"][-1]["outputs"]:
        where = "on samples held back" if apart["held_back"] else "on the samples it was calibrated on"
        console.print(f"outputs against the dense model's, {where}:")
        console.print(_stages_table(apart["stages"], verbose))
    if apart["damaged"]:
        console.print(damage_words(apart, repair["mode"]))
    for said in data["assumed"]:
        console.print(f"calibration: {said}")
    for line in left_out_lines(data["left_out"]):
        console.print(line, markup=False)


def print_search(console: Console, record: Mapping[str, Any]) -> None:
    """Print what a search found, if there was one."""
    found = record["plan"]["meta"].get("search")
    if found:
        console.print(
            f"searched: {found['evaluations']} models, divergence {found['before']:.4g} -> {found['after']:.4g} on the "
            f"{found['samples']} samples of the search"
        )


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """Return in words which layers are not repaired, and why, the most frequent reason first.

    >>> left_out_lines({"a": "its weight is tied", "b": "its weight is tied", "c": "its weight is empty"})
    ['not repaired: 2 layers (a, ...): its weight is tied', 'not repaired: 1 layer (c): its weight is empty']
    """
    by_reason: dict[str, list[str]] = {}
    for node, reason in left_out.items():
        by_reason.setdefault(reason, []).append(node)
    ranked = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return [
        f"not repaired: {len(nodes)} layer{'s' * (len(nodes) > 1)} ({nodes[0]}{', ...' * (len(nodes) > 1)}): {reason}"
        for reason, nodes in ranked
    ]


def layers_words(repair: Mapping[str, Any]) -> str:
    """Return the errors of repaired layers in words."""
    words = f"median error of layers {_percent(repair['error_before'])} to {_percent(repair['error_after'])}"
    return f"{words}, largest left {_percent(repair['largest_after'])}"


def _percent(fraction: float) -> str:
    """Return a fraction in percent; beyond ten times the size of a thing its multiple tells nothing.

    >>> _percent(0.5), _percent(3e5)
    ('50.0%', 'over 1000%')
    """
    return f"{fraction:.1%}" if fraction <= _MOST else f"over {_MOST:.0%}"


def damage_words(apart: Mapping[str, Any], mode: str = "sequential") -> str:
    """Return the warning about damaged outputs, with how much may go without damage where that was searched.

    >>> damage_words({"onset": {"budget": {"macs": 0.62}, "macs": 0.62, "damaged_at": {"macs": 0.55}}})
    'damaged: the outputs are far from the dense model's; down to macs=0.62 they are not: prune less, ...
    """
    found = apart["onset"]
    other = "give (more) data by --calibration" if mode in ("symmetric", "sequential") else "use --repair sequential"
    hint = f"prune less, or {other}"
    begin = "damaged: the outputs are far from the dense model's"
    if found is None:
        return f"{begin}: {hint}"
    if found["budget"] is None:
        return f"{begin}, and already at {_budget(found['damaged_at'])}: {other}"
    way = "up to" if "sparsity" in found["budget"] else "down to"
    return f"{begin}; {way} {_budget(found['budget'])} they are not: {hint}"


def _budget(budget: Mapping[str, float]) -> str:
    return " and ".join(f"{kind}={value:.2f}" for kind, value in budget.items())


def _layers_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    numbers = ("error before", "after", "strength")
    table = table_of("layers", "layer", *numbers, right=numbers)
    for x in layers:
        strength = f"{x['strength']:.0e}" if x["strength"] is not None else ""
        table.add_row(x["node"], _percent(x["before"]), _percent(x["after"]), strength)
    return table


def _stages_table(stages: Sequence[Mapping[str, Any]], verbose: bool) -> Table:
    """Return a row for each output and stage; of many outputs only the worst, before and after."""
    names = [o["output"] for o in stages[-1]["outputs"]]
    if len(names) > 1 and not verbose:
        stages = [stages[0], *stages[1:][-1:]]
        worst = {o["output"]: -o["relative"] for o in stages[-1]["outputs"]}
        names = sorted(names, key=lambda n: worst[n])[:_SHOWN]
    table = table_of(None, "output", "stage", *_NUMBERS, right=_NUMBERS)
    for name in names:
        rows = [(stage["stage"], o) for stage in stages for o in stage["outputs"] if o["output"] == name]
        for k, (stage, found) in enumerate(rows):
            table.add_row("" if k else name, stage, *_numbers(found))
    left = len(stages[-1]["outputs"]) - len(names)
    if left:
        table.add_row(f"and {left} others, which differ less")
    return table


def _numbers(found: Mapping[str, Any]) -> tuple[str, ...]:
    likely = ("", "") if found["kl"] is None else (f"{found['kl']:.3g}", f"{found['agree']:.1%}")
    return (*likely, f"{found['cosine']:.4f}", f"{found['relative']:.1%}")


def print_evaluation(console: Console, record: Mapping[str, Any]) -> None:
    """Print what the user's own metric says of the dense and the pruned model."""
    found = record.get("evaluation")
    if not found:
        return
    moments = [(key, name) for key, name in _MOMENTS if found.get(key) is not None]
    columns = tuple(name for _, name in moments)
    table = table_of(None, found["metric"], *columns, right=columns)
    for metric in dict.fromkeys(k for key, _ in moments for k in found[key]):
        table.add_row(metric, *(_shown(found[key][metric]) if metric in found[key] else "" for key, _ in moments))
    console.print()
    console.print(table)
    console.print()


def _shown(number: float) -> str:
    return f"{number:.6g}" if abs(number) < 1e6 else f"{number:,.0f}"

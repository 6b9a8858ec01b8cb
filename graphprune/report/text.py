"""Records as tables for people, printed with rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from graphprune.pins import EXPECTED
from graphprune.report import quality
from graphprune.report.tables import count, table_of

_SHOWN = 12
_BY = {"macs": "multiply-accumulates", "latency and macs": "predicted time and multiply-accumulates"}


def costs_table(record: Mapping[str, Any]) -> Table:
    """Return the table before and after."""
    table = table_of(None, "", "before", "after", "kept", right=("before", "after", "kept"))
    before, after = record["before"], record["after"]
    for key, name in (("parameters", "parameters"), ("macs", "MACs"), ("bytes", "bytes of weights")):
        kept = f"{after[key] / before[key]:.1%}" if before[key] else ""
        table.add_row(name, count(before[key]), count(after[key]), kept)
    if before.get("peak_memory_mb") and after.get("peak_memory_mb"):
        a, b = before["peak_memory_mb"], after["peak_memory_mb"]
        table.add_row("peak memory", f"{a:.1f} MB", f"{b:.1f} MB", f"{b / a:.1%}")
    if before["latency_ms"] and after["latency_ms"]:
        a, b = before["latency_ms"], after["latency_ms"]
        table.add_row("latency", f"{a:.3g} ms", f"{b:.3g} ms", f"{b / a:.1%}")
    return table


def speed_line(record: Mapping[str, Any]) -> str:
    """Return the measured speed-up in words, never claiming one inside the noise."""
    if record.get("speedup") is None:
        return "not timed"
    speed, band = record["speedup"], record["noise_band"]
    if abs(speed - 1) <= band:
        return f"speed: no difference beyond noise ({speed:.2f}x, noise ±{band:.1%})"
    word = "faster" if speed > 1 else "SLOWER"
    return f"speed: {speed:.2f}x, {word} than the dense model (noise ±{band:.1%})"


def pins_table(pins: Sequence[Mapping[str, Any]], verbose: bool = False) -> Table | None:
    """Return what is not prunable, by reason."""
    reasons: dict[str, list[Mapping[str, Any]]] = {}
    for p in pins:
        if not verbose and p["reason"].startswith(EXPECTED):
            continue
        reasons.setdefault(p["reason"] if verbose else p["reason"].split(" [")[0], []).append(p)
    if not reasons:
        return None
    table = table_of("not prunable", "reason", "weight axes", "for example", right=("weight axes",))
    for reason, rows in sorted(reasons.items(), key=lambda item: -sum(r["elements"] for r in item[1])):
        largest = max(rows, key=lambda r: r["elements"])
        table.add_row(reason, str(len(rows)), largest["name"])
    return table


def proof_words(proof: Mapping[str, Any]) -> str:
    """Return the outcome of a permutation proof in words."""
    copy = "; on a copy with random weights, the model's own hide the groups" if proof["random_weights"] else ""
    return (
        f"permuting all {proof['groups']} groups changes the output by {proof['max_relative_error']:.1e} "
        f"(allowed {proof['tolerance']:.0e}, rounding alone {proof['rounding_noise']:.0e}{copy})"
    )


def print_prune(console: Console, record: Mapping[str, Any], output: str, verbose: bool) -> None:
    """Print what `prune` did."""
    console.print(costs_table(record))
    console.print()
    console.print(speed_line(record))
    _print_speed(console, record)
    proof = record["proof"]
    if proof:
        console.print(f"proof: {proof_words(proof)}")
    print_changes(console, record)
    quality.print_search(console, record)
    quality.print_repair(console, record, verbose)
    quality.print_evaluation(console, record)
    checks = [c["name"] for c in record["checks"] if c["passed"]]
    passed = f"checks passed: {', '.join(dict.fromkeys(checks))}"
    console.print(passed if checks else "not run: checks were switched off")
    _print_pins(console, record["pins"], verbose)
    _print_border(console, record)
    _print_adapters(console, record["adapters"])
    _print_state(console, record["state"])
    print_assumed(console, record)
    if verbose:
        table = table_of("groups", "group", "size", "kept", right=("size", "kept"))
        for g in record["groups"]:
            table.add_row(g["name"], str(g["size"]), str(g["kept"]))
        console.print(table)
        console.print("seconds: " + ", ".join(f"{k} {v:.2f}" for k, v in record["seconds"].items()))
    console.print(f"written: {output}")


def print_assumed(console: Console, record: Mapping[str, Any]) -> None:
    """Print what was assumed of inputs, and remarks on how the model was run."""
    for text in record["assumed"]:
        console.print(f"assumed {text}" if text.startswith("input ") else text)


def _print_line(console: Console, text: str) -> None:
    """Print one line as it is, to be copied: nothing is wrapped, and nothing in it is markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _print_border(console: Console, record: Mapping[str, Any]) -> None:
    """Print what more could go, and the options to add for that."""
    border = record["border"]
    if border and border["options"]:
        share = f"{record['coverage']:.1%} of the weights lie on a group"
        _print_line(console, f"{share}, {border['coverage']:.1%} if inputs and outputs may change: {border['options']}")


def _print_adapters(console: Console, adapters: Sequence[Mapping[str, Any]]) -> None:
    """Print what became narrower behind inputs and outputs that keep their sizes."""
    for a in (a for a in adapters if a["inside"] < a["size"]):
        kept = f"{a['side']} {a['name']!r} keeps its size {a['size']} on axis {a['axis']}"
        _print_line(console, f"{kept}, inside it is {a['inside']}: a matrix between makes one of the other")


def _print_pins(console: Console, pins: Sequence[Mapping[str, Any]], verbose: bool) -> None:
    table = pins_table(pins, verbose)
    if table is not None:
        console.print()
        console.print(table)
        console.print()


def print_inspect(console: Console, record: Mapping[str, Any], verbose: bool) -> None:
    """Print the groups of a model and what is pinned."""
    m = record["model"]
    console.print(
        f"{m['nodes']} nodes, opset {m['opset']}, {count(m['parameters'])} parameters, {count(m['macs'])} MACs, "
        f"{count(m['bytes'])} bytes of weights; {record['coverage']:.1%} of the weights lie on a group"
    )
    if record["border"]["command"]:
        _print_line(console, f"{record['border']['coverage']:.1%} if these may change: {record['border']['command']}")
    columns = ("group", "size", "parameters", "MACs", "places")
    table = table_of("channel groups", *columns, right=("size", "parameters", "MACs"))
    for g in record["groups"]:
        places = [f"{o['initializer']}:{o['axis']} {o['expression']} {o['role']}" for o in g["occurrences"]]
        shown = places if verbose else places[:_SHOWN]
        if len(places) > len(shown):
            shown.append(f"... {len(places) - len(shown)} more (-v)")
        table.add_row(g["name"], str(g["size"]), count(g["parameters"]), count(g["macs"]), "\n".join(shown))
    console.print(table)
    _print_branches(console, record["branches"], verbose)
    _print_pins(console, record["pins"], verbose)
    for a in record["adapters"]:
        kept = f"{a['side']} {a['name']!r} keeps its size {a['size']} on axis {a['axis']}"
        _print_line(console, f"{kept}; inside it is free, with a matrix between ({', '.join(a['groups'])})")
    _print_open(console, record["state"])
    for key, title in (("pin_shares", "pinned weights"), ("half_prunable", "prunable by another axis only")):
        if record.get(key):
            console.print(shares_table(title, record[key]))
            console.print()
    console.print("seconds: " + ", ".join(f"{k} {v:.3f}" for k, v in record["seconds"].items()))


def _print_branches(console: Console, branches: Sequence[Mapping[str, Any]], verbose: bool) -> None:
    """Print the branches that could be bypassed; only how many there are, unless `verbose`."""
    if not branches:
        return
    free = [b for b in branches if not b["reason"]]
    refused = f", {len(branches) - len(free)} more cannot be" if len(free) < len(branches) else ""
    if not verbose:
        console.print(f"residual branches: {len(free)} can be bypassed{refused} (-v lists them)")
        return
    table = table_of("residual branches", "branch", "parameters", "MACs", "cannot go", right=("parameters", "MACs"))
    for b in branches:
        table.add_row(b["name"], count(b["parameters"]), count(b["macs"]), b["reason"])
    console.print(table)


def print_plan(console: Console, record: Mapping[str, Any], verbose: bool) -> None:
    """Print the predicted costs of a plan and what every group gives up."""
    console.print(costs_table(record))
    table = table_of("groups", "group", "size", "kept", right=("size", "kept"))
    for g in record["groups"]:
        if verbose or g["kept"] < g["size"]:
            table.add_row(g["name"], str(g["size"]), str(g["kept"]))
    console.print(table)
    print_changes(console, record)
    _print_speed(console, record)
    _print_border(console, record)
    _print_adapters(console, record["adapters"])
    _print_state(console, record["state"])


def _print_speed(console: Console, record: Mapping[str, Any]) -> None:
    """Print what was predicted of the speed and what was measured, and what is to be said of that."""
    speed = record["plan"]["meta"].get("speed")
    if speed is None or "measured" not in speed:  # a plan of an earlier version
        return
    predicted, measured, by = speed["predicted"], speed["measured"], _BY.get(speed["by"])
    if measured is None:
        console.print(f"predicted {predicted:.2f}x, not timed there")
    elif by is not None:
        console.print(f"measured {measured:.2f}x; widths by {by}, which lose less at the same speed here")
    else:
        off, timed = abs(predicted / measured - 1), len(speed["trials"])
        console.print(f"predicted {predicted:.2f}x, measured {measured:.2f}x ({off:.1%} off); models timed: {timed}")
    for remark in speed["remarks"]:
        _print_line(console, remark)


def print_changes(console: Console, record: Mapping[str, Any]) -> None:
    """Print which branches are bypassed, and what was cleaned up."""
    bypass, cleanup = record["bypass"], record["cleanup"]
    if bypass:
        many = f"{len(bypass)} branches" if len(bypass) > 1 else "1 branch"
        _print_line(console, f"bypassed: {many}: {', '.join(bypass)}")
    if cleanup and (cleanup["nodes"] or cleanup["constants"]):
        console.print(f"clean-up: {cleanup['nodes']} nodes and {cleanup['constants']} constants less, outputs the same")
    if cleanup and cleanup["dropped"]:
        console.print(f"clean-up left out, it would change the outputs: {', '.join(cleanup['dropped'])}")


def sizes(shape: Sequence[int | None]) -> str:
    """Return a shape as text.

    >>> sizes([1, 2, None, 16])
    '1x2x?x16'
    """
    return "x".join("?" if n is None else str(n) for n in shape) or "a single number"


def _print_state(console: Console, state: Sequence[Mapping[str, Any]]) -> None:
    """Print which inputs and outputs have other sizes now."""
    if state:
        table = table_of("inputs and outputs of other sizes", "", "name", "before", "after", "the same state as")
        for s in state:
            table.add_row(s["side"], s["name"], sizes(s["before"]), sizes(s["after"]), s["counterpart"] or "")
        console.print(table)
        console.print()


def _print_open(console: Console, state: Sequence[Mapping[str, Any]]) -> None:
    """Print which inputs and outputs may change, and along which axes."""
    if state:
        columns = ("", "name", "sizes", "the same state as", "axis: groups that it lies on")
        table = table_of("inputs and outputs that may change", *columns)
        for s in state:
            lies = [f"{k}: {', '.join(names)}" for k, names in s["groups"].items()]
            for reason in dict.fromkeys(s["pinned"].values()):
                lies.append(f"{', '.join(k for k, r in s['pinned'].items() if r == reason)}: pinned, {reason}")
            table.add_row(s["side"], s["name"], sizes(s["shape"]), s["counterpart"] or "", "\n".join(lies))
        console.print(table)
        console.print()


def shares_table(title: str, shares: Sequence[Mapping[str, Any]]) -> Table:
    """Return which operators pin which share of a model's weights."""
    table = table_of(title, "operator", "reason", "weights", "share", "for example", right=("weights", "share"))
    for p in shares:
        table.add_row(p["operator"], p["reason"], str(p["weights"]), _percent(p["share"]), p["example"])
    return table


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or not share else "<0.1%"


def print_survey(console: Console, record: Mapping[str, Any], shown: int) -> None:
    """Print the coverage of many models, and the operators that pin most."""
    table = table_of("models", "model", "coverage", "pinned most by", "share", "reason", right=("coverage", "share"))
    read = [m for m in record["models"] if not m["error"]]
    for m in sorted(read, key=lambda m: 2.0 if m["coverage"] is None else m["coverage"]):
        p = m["pins"][0] if m["pins"] else None
        cells = (p["operator"], _percent(p["share"]), p["reason"]) if p else ("", "", "")
        table.add_row(Path(m["path"]).name, "no weights" if m["coverage"] is None else f"{m['coverage']:.2%}", *cells)
    console.print(table)
    for m in record["models"]:
        if m["error"]:
            console.print(f"not read: {m['path']}: {m['error']}")
    console.print()
    columns = ("operator", "mean share", "models", "main reason", "worst")
    table = table_of("operators that pin weights", *columns, right=("mean share", "models"))
    for o in record["operators"][:shown]:
        worst = f"{_percent(o['worst_share'])} of {Path(o['worst']).name}"
        table.add_row(o["operator"], f"{o['mean_share']:.2%}", str(o["models"]), o["reason"], worst)
    console.print(table)
    if record["median_coverage"] is not None:
        console.print(f"coverage: median {record['median_coverage']:.2%}, mean {record['mean_coverage']:.2%}")

"""Records as tables for people, printed with rich."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_SHOWN = 12
_EXPECTED = "kernel positions"  # every convolution has them; listed with -v


def count(n: float) -> str:
    """Return a number with three digits and a unit.

    >>> count(25557032)
    '25.6 M'
    """
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if abs(n) >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.3g}"


def _table(title: str | None, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for c in columns:
        table.add_column(c, justify="right" if c in right else "left", overflow="fold")
    return table


def costs_table(record: Mapping[str, Any]) -> Table:
    """Return the table before and after."""
    table = _table(None, "", "before", "after", "kept", right=("before", "after", "kept"))
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
        if not verbose and p["reason"].startswith(_EXPECTED):
            continue
        reasons.setdefault(p["reason"] if verbose else p["reason"].split(" [")[0], []).append(p)
    if not reasons:
        return None
    table = _table("not prunable", "reason", "weight axes", "for example", right=("weight axes",))
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
    proof = record["proof"]
    if proof:
        console.print(f"proof: {proof_words(proof)}")
    checks = [c["name"] for c in record["checks"] if c["passed"]]
    passed = f"checks passed: {', '.join(dict.fromkeys(checks))}"
    console.print(passed if checks else "not run: checks were switched off")
    _print_pins(console, record["pins"], verbose)
    print_assumed(console, record)
    if verbose:
        table = _table("groups", "group", "size", "kept", right=("size", "kept"))
        for g in record["groups"]:
            table.add_row(g["name"], str(g["size"]), str(g["kept"]))
        console.print(table)
        console.print("seconds: " + ", ".join(f"{k} {v:.2f}" for k, v in record["seconds"].items()))
    console.print(f"written: {output}")


def print_assumed(console: Console, record: Mapping[str, Any]) -> None:
    """Print what was assumed of inputs, and remarks on how the model was run."""
    for text in record["assumed"]:
        console.print(f"assumed {text}" if text.startswith("input ") else text)


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
    columns = ("group", "size", "parameters", "MACs", "places")
    table = _table("channel groups", *columns, right=("size", "parameters", "MACs"))
    for g in record["groups"]:
        places = [f"{o['initializer']}:{o['axis']} {o['expression']} {o['role']}" for o in g["occurrences"]]
        shown = places if verbose else places[:_SHOWN]
        if len(places) > len(shown):
            shown.append(f"... {len(places) - len(shown)} more (-v)")
        table.add_row(g["name"], str(g["size"]), count(g["parameters"]), count(g["macs"]), "\n".join(shown))
    console.print(table)
    _print_pins(console, record["pins"], verbose)
    console.print("seconds: " + ", ".join(f"{k} {v:.3f}" for k, v in record["seconds"].items()))


def print_plan(console: Console, record: Mapping[str, Any], verbose: bool) -> None:
    """Print the predicted costs of a plan and what every group gives up."""
    console.print(costs_table(record))
    table = _table("groups", "group", "size", "kept", right=("size", "kept"))
    for g in record["groups"]:
        if verbose or g["kept"] < g["size"]:
            table.add_row(g["name"], str(g["size"]), str(g["kept"]))
    console.print(table)


def print_bench(console: Console, record: Mapping[str, Any]) -> None:
    """Print timings of models."""
    names = ("model", "median ms", "p10", "p90", "p99", "rounds", "peak MB")
    table = _table(None, *names, right=names[1:])
    for r in record["models"]:
        p99 = f"{r['p99_ms']:.3g}" if r["p99_ms"] is not None else ""
        peak = f"{r['peak_memory_mb']:.1f}" if r["peak_memory_mb"] is not None else ""
        table.add_row(
            r["model"], f"{r['median_ms']:.4g}", f"{r['p10_ms']:.4g}", f"{r['p90_ms']:.4g}", p99, str(r["rounds"]), peak
        )
    console.print(table)

"""Decide first, look, edit, then prune: a plan is a JSON file that can be read, changed, kept and replayed.

The script writes a plan with the command line, gives one group all of its channels back by editing the JSON, replays
the edited plan twice, and shows that both files are the same byte for byte and what the edit cost. Run it with:

    python samples/3_plan_and_replay.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MODEL = Path(__file__).resolve().parent / "fashion_mnist_resnet.onnx"


def graphprune(*arguments: str | Path) -> None:
    """Run the graphprune command and show it."""
    shown = [a.name if isinstance(a, Path) else a for a in arguments]
    print("\n$ graphprune", *shown, flush=True)
    subprocess.run([sys.executable, "-m", "graphprune", *map(str, arguments)], check=True)


def main() -> None:
    """Plan, edit, replay twice, compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan, edited = folder / "plan.json", folder / "edited.json"
        graphprune("plan", MODEL, "--target", "macs=0.5", "-o", plan)

        content = json.loads(plan.read_text())
        stem = next(iter(content["groups"]))
        print(f"\nedit: the group {stem!r} keeps all of its {content['groups'][stem]['size']} channels")
        del content["groups"][stem]
        edited.write_text(json.dumps(content))

        first, second = folder / "first.onnx", folder / "second.onnx"
        graphprune("prune", MODEL, "--plan", edited, "-o", first)
        graphprune("prune", MODEL, "--plan", edited, "-o", second, "--quiet")
        print(f"\nreplayed twice, same bytes: {first.read_bytes() == second.read_bytes()}")


if __name__ == "__main__":
    main()

"""Peak host memory of a model that is loaded and run once, measured in a process of its own."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from typing import Any

from graphprune.errors import GraphPruneError, SessionError
from graphprune.runtime import Feeds, ModelSource, Runtime, bind, open_session, resolve_provider


def peak_memory_mb(model: ModelSource, feeds: Feeds, runtime: Runtime) -> float | None:
    """Return the peak host memory that loading a model and running it once takes, in MB (10^6 bytes).

    >>> peak_memory_mb("resnet50.onnx", {"x": x}, Runtime())  # doctest: +SKIP
    153.4

    Measured in a new process, above what the process holds with onnxruntime imported and the inputs read; memory
    of a device is not counted. None where the platform does not tell (it does on Linux and macOS). Raises
    `RuntimeUnavailable`, or `SessionError` if the model does not run or the process dies.
    """
    resolve_provider(runtime.provider)
    if _peak_bytes() is None:
        return None
    # -I and the parent's own search path: neither the current folder nor the environment decides what is imported.
    child = subprocess.run(
        [sys.executable, "-I", "-c", _CHILD, json.dumps([entry or os.getcwd() for entry in sys.path])],
        input=pickle.dumps((model, dict(feeds), runtime)),
        capture_output=True,
        check=False,
    )
    lines = child.stdout.decode(errors="replace").splitlines()
    if child.returncode or not lines:
        reason = (child.stderr.decode(errors="replace").splitlines() or ["it said nothing"])[-1]
        raise SessionError(f"the process that measures memory ended with status {child.returncode}: {reason}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise SessionError(answer["error"])
    return float(answer["bytes"]) / 1e6


_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from graphprune.memory import _child; _child()"


def _child() -> None:
    """Measure what the parent process sends, and print the answer as the last line of the output."""
    model, feeds, runtime = pickle.load(sys.stdin.buffer)
    try:
        resolve_provider(runtime.provider)  # imports onnxruntime
        before = _peak_bytes() or 0
        bind(open_session(model, runtime), feeds)()
        answer: dict[str, Any] = {"bytes": (_peak_bytes() or 0) - before}
    except GraphPruneError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


def _peak_bytes() -> int | None:
    """Return the peak resident memory of this process, or None where the platform does not tell."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage: on Linux a new process inherits the peak of the one that started it.
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None

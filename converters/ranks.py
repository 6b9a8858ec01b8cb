"""Several processes that tune one model, as torch's own launcher starts them; alone there is nothing to do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from graphprune.errors import UsageError


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def part(self, count: int) -> tuple[int, int]:
        """Return where this process's share of so many rows begins and ends.

        >>> [Ranks(r, 3).part(7) for r in range(3)]
        [(0, 3), (3, 5), (5, 7)]
        """
        share, more = divmod(count, self.world)
        start = self.rank * share + min(self.rank, more)
        return start, start + share + (self.rank < more)

    def summed(self, numbers: Any) -> Any:
        """Add up a tensor over all processes, in place, and return it."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(numbers)
        return numbers

    def totals(self, numbers: Sequence[float], device: str) -> Sequence[float]:
        """Return each number summed over all processes."""
        if self.world == 1:
            return numbers
        import torch

        found: list[float] = self.summed(torch.tensor(numbers, device=device)).tolist()
        return found

    def averaged(self, weights: Iterable[Any], rows: int) -> None:
        """Make the gradients of each process, means over its own rows, those of the whole batch."""
        if self.world == 1:
            return
        import torch

        weights = [w for w in weights if w.requires_grad]
        if not weights:
            return
        total = self.summed(torch.tensor(float(rows), device=weights[0].device))
        for w in weights:
            grad = torch.zeros_like(w) if w.grad is None or not rows else w.grad * (rows / total)
            w.grad = self.summed(grad)

    def settle(self, module: Any) -> None:
        """Average running statistics, which each process has moved by what it saw."""
        if self.world > 1:
            for buffer in module.buffers():
                if buffer.is_floating_point():
                    self.summed(buffer.div_(self.world))


ALONE = Ranks()


def launched() -> int:
    """Return how many processes torch's launcher started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def joined(device: str) -> tuple[Ranks, str]:
    """Join the other processes if torch's launcher started this one; return which it is, and its device.

    >>> joined("cpu")
    (Ranks(rank=0, world=1), 'cpu')

    gloo connects them on the CPU, nccl on cuda, where each takes the device of its local rank. Raises UsageError.
    """
    world = launched()
    if world == 1:
        return ALONE, device
    import torch
    import torch.distributed as dist
    import torch.distributed.nn.functional  # its defaults would hold the group for ever if it were imported later

    cuda = device.startswith("cuda")
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    try:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
    except Exception as error:
        said = str(error).splitlines()[0][:200]
        raise UsageError(f"the {world} processes of this launch cannot be connected: {said}") from error
    return Ranks(dist.get_rank(), dist.get_world_size()), device


def leave() -> None:
    """Take leave of the other processes, if there are any, and end the threads that connected this one to them.

    A thread that still wants the interpreter when it is gone would abort the process, after all of its work.
    """
    if "RANK" in os.environ:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

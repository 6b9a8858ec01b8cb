"""What can be asked of tuning: how long, how fast, to what, and which weights; plain values, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphprune.errors import UsageError

PENALTIES = {"greg": 0.1, "mask": 1.0}
"""How a plan's structures are pulled to 0, see `towards.py`, and how strongly if nothing is said."""

AUTO, TRAIN, FROZEN, RESTORED = "auto", "train", "frozen", "restored"
NORMS = (AUTO, RESTORED, TRAIN, FROZEN)
"""What batch normalisations do while a model is tuned, see `restored.py`."""

FLOAT32, BFLOAT16, FLOAT16 = "float32", "bfloat16", "float16"
PRECISIONS = (FLOAT32, BFLOAT16, FLOAT16)
"""What outputs are computed in, see `descent.py`; weights and losses are float32."""

_RATE, _RATE_RESTORED = 1e-3, 4e-3


@dataclass(frozen=True)
class Tuning:
    """How a model is tuned.

    `lr` is the largest learning rate, which rises over the first tenth of the steps and falls to 0 by a cosine; None:
    1e-3, or 4e-3 where normalisations are restored. `norms`: batch normalisations use the batch ("train") or their
    running statistics ("frozen"); those that were folded come back for a while ("restored"; "auto" where that is
    sound, see `restored.py`). `patience`: epochs without a smaller held-back loss after which it stops, None: never.
    `labels`: they are an aim; with a teacher beside them its share of the loss is `alpha`; `smoothing` of each goes to
    all classes alike. `features` are patterns of inner values that are an aim, too, with `feature_weight`.
    `only`: which weights change; `lora`: the rank of updates of matrices, of those that fit `lora_on` (all if empty),
    in which case `only` says which change themselves. `penalty` and its `strength` are for tuning towards a plan.
    `precision`: what products are computed in. `augment`: how images are changed each time, see `augment.py`.
    `memory`: GB that samples and answers may take.
    """

    epochs: int = 5
    batch: int = 64
    lr: float | None = None
    decay: float = 0.01
    temperature: float = 2.0
    norms: str = AUTO
    only: tuple[str, ...] = ()
    patience: int | None = None
    precision: str = FLOAT32
    labels: bool = False
    device: str = "cpu"
    seed: int = 0
    alpha: float = 0.5
    smoothing: float = 0.0
    features: tuple[str, ...] = ()
    feature_weight: float = 1.0
    augment: tuple[str, ...] = ()
    memory: float = 2.0
    lora: int = 0
    lora_on: tuple[str, ...] = ()
    penalty: str = "greg"
    strength: float = 0.1

    def __post_init__(self) -> None:
        for name, low in (
            ("epochs", 1), ("batch", 1), ("lr", 1e-12), ("temperature", 1e-6), ("patience", 1), ("alpha", 0),
            ("feature_weight", 0), ("memory", 1e-9), ("lora", 0), ("strength", 1e-12), ("smoothing", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise UsageError(f"{name} is {value}: give a larger number")
        if self.alpha > 1:
            raise UsageError(f"alpha is {self.alpha}: it is the teacher's share of the loss, from 0 to 1")
        if self.smoothing >= 1 or (self.smoothing and not self.labels):
            raise UsageError(f"smoothing is {self.smoothing}: what --labels lose to other classes, less than 1")
        if self.lora_on and not self.lora:
            raise UsageError("--lora-on says which weights get updates: give their rank by --lora")
        if self.penalty not in PENALTIES:
            raise UsageError(f"penalty is {self.penalty!r}: give {' or '.join(PENALTIES)}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision is {self.precision!r}: give {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")
        if self.norms not in NORMS:
            raise UsageError(f"norms is {self.norms!r}: give {', '.join(NORMS[:-1])} or {NORMS[-1]}")

    @property
    def rate(self) -> float:
        """The largest learning rate."""
        return _RATE if self.lr is None else self.lr

    def settled(self, restored: bool) -> Tuning:
        """Return what is meant where nothing was said of the learning rate: with normalisations it may be larger."""
        return replace(self, lr=_RATE_RESTORED if restored else _RATE) if self.lr is None else self

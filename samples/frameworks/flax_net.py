"""The small residual CNN in JAX with flax; its source is `flax_net:net`, which reads the weights that lie beside it."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

WEIGHTS = "flax_net.npz"


class Block(nnx.Module):
    """Two convolutions beside a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(inputs, outputs, (3, 3), stride, padding="SAME", use_bias=False, rngs=rngs)
        self.second = nnx.Conv(outputs, outputs, (3, 3), padding="SAME", use_bias=False, rngs=rngs)
        self.norm1, self.norm2 = (nnx.BatchNorm(outputs, momentum=0.9, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.around = nnx.Conv(inputs, outputs, (1, 1), stride, rngs=rngs) if stride > 1 else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm2(self.second(nnx.relu(self.norm1(self.first(x)))))
        return nnx.relu(y + (x if self.around is None else self.around(x)))


class Net(nnx.Module):
    """Images [n, 28, 28, 1] to logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(1, 16, (3, 3), padding="SAME", rngs=rngs)
        self.one, self.two, self.three = Block(16, 16, 1, rngs), Block(16, 32, 2, rngs), Block(32, 64, 2, rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        x = self.three(self.two(self.one(nnx.relu(self.stem(image)))))
        return self.head(x.mean((1, 2)))


def net() -> Net:
    """Return the trained network, with the weights of the folder that FLAX_NET names."""
    made = Net(nnx.Rngs(0))
    graph, state = nnx.split(made)
    leaves, tree = jax.tree.flatten(state)
    with np.load(Path(os.environ.get("FLAX_NET", ".")) / WEIGHTS) as stored:
        kept = [jax.numpy.asarray(stored[str(k)]) if str(k) in stored else x for k, x in enumerate(leaves)]
    trained = nnx.merge(graph, jax.tree.unflatten(tree, kept))
    trained.eval()
    return trained


def train(images: np.ndarray, labels: np.ndarray, epochs: int, folder: Path) -> str:
    """Train on images [n, 28, 28], and return the source to convert."""
    made = Net(nnx.Rngs(0))
    steps = epochs * (len(images) // 100)
    tuner = nnx.Optimizer(made, optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, tuner: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
        def loss(model: Net) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        tuner.update(model, nnx.grad(loss)(model))

    rng, x = np.random.default_rng(0), arranged(images)
    order = np.concatenate([rng.permutation(len(x)) for _ in range(epochs)])
    for part in order[: steps * 100].reshape(steps, 100):
        step(made, tuner, x[part], labels[part])
    return saved(made, folder)


def untrained(folder: Path) -> str:
    """Return the source of the network before training."""
    return saved(Net(nnx.Rngs(0)), folder)


def saved(made: Net, folder: Path) -> str:
    """Write the weights where `net` looks for them, and return the source to convert."""
    leaves = jax.tree.leaves(nnx.split(made)[1])
    keys = jax.dtypes.prng_key  # of random numbers, which are no weights
    numbers = {str(k): np.asarray(v) for k, v in enumerate(leaves) if not jax.dtypes.issubdtype(v.dtype, keys)}
    np.savez(folder / WEIGHTS, **numbers)
    os.environ["FLAX_NET"] = str(folder)
    return "flax_net:net"


def arranged(images: np.ndarray) -> np.ndarray:
    """Return images as the network takes them."""
    return images[..., None]


def answers(source: str, images: np.ndarray) -> np.ndarray:
    """Return what the framework itself computes."""
    return np.asarray(nnx.jit(net())(arranged(images)))

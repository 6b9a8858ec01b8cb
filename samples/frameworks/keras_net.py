"""The small residual CNN in Keras on TensorFlow; its source is net.keras."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from keras import layers


def norm() -> layers.Layer:
    """Batch normalisation with the numbers of the other frameworks' networks."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)


def block(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
    """Two convolutions beside a way around them."""
    y = layers.Conv2D(width, 3, stride, "same", use_bias=False)(x)
    y = layers.ReLU()(norm()(y))
    y = norm()(layers.Conv2D(width, 3, 1, "same", use_bias=False)(y))
    around = layers.Conv2D(width, 1, stride)(x) if stride > 1 else x
    return layers.ReLU()(layers.Add()([y, around]))


def build() -> keras.Model:
    """Return the network, images [n, 28, 28, 1] to logits."""
    keras.utils.set_random_seed(0)
    image = keras.Input((28, 28, 1), name="image")
    x = layers.ReLU()(layers.Conv2D(16, 3, padding="same")(image))
    x = block(block(block(x, 16, 1), 32, 2), 64, 2)
    return keras.Model(image, layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(x)))


def train(images: np.ndarray, labels: np.ndarray, epochs: int, folder: Path) -> str:
    """Train on images [n, 28, 28], and return the source to convert."""
    net = build()
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * len(images) // 100)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.AdamW(rate, weight_decay=0.01), loss)
    net.fit(arranged(images), labels, batch_size=100, epochs=epochs, verbose=0)
    net.save(folder / "net.keras")
    return str(folder / "net.keras")


def untrained(folder: Path) -> str:
    """Return the source of the network before training."""
    build().save(folder / "net.keras")
    return str(folder / "net.keras")


def arranged(images: np.ndarray) -> np.ndarray:
    """Return images as the network takes them."""
    return images[..., None]


def answers(source: str, images: np.ndarray) -> np.ndarray:
    """Return what the framework itself computes."""
    return np.asarray(keras.saving.load_model(source).predict(arranged(images), verbose=0))

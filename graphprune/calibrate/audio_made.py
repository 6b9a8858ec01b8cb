"""Sounds and series that nobody recorded: waves, spectrograms, series, feature vectors; mean 0, deviation near 1.

A wave is a voice (harmonics of a gliding pitch under two formants, in syllables) over 1/f noise, with silences. A
spectrogram is what such a sound looks like on a mel scale: ridges that glide and fade over a falling floor.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]

_RATE = 16000.0
_HARMONICS = 12
_FORMANTS = (500.0, 1500.0)
_RIDGES = 6
_BREATH = np.float32(0.05)


def pink(rng: np.random.Generator, shape: tuple[int, ...], power: float = 0.5) -> Floats:
    """Return noise along the last axis whose amplitude falls as 1/f^`power`, of deviation 1.

    >>> pink(np.random.default_rng(0), (2, 100)).shape
    (2, 100)
    """
    n = shape[-1]
    f = np.maximum(np.fft.rfftfreq(n), 1 / max(n, 1))
    fall = f**-power
    spectrum = np.fft.rfft(rng.standard_normal(shape, np.float32)) * (fall / np.sqrt(np.mean(fall**2)))
    return np.fft.irfft(spectrum, n).astype(np.float32)


def smooth(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> Floats:
    """Return curves along the last axis through `knots` normal numbers, linear in between."""
    knots = max(knots, 2)
    at = np.linspace(0, knots - 1, shape[-1])
    low = np.minimum(at.astype(int), knots - 2)
    part = (at - low).astype(np.float32)
    values = rng.standard_normal((*shape[:-1], knots), np.float32)
    out: Floats = values[..., low] * (1 - part) + values[..., low + 1] * part
    return out


def waves(rng: np.random.Generator, count: int, length: int, rate: float = _RATE) -> Floats:
    """Return [count, length] of voices with silences over 1/f noise.

    >>> waves(np.random.default_rng(0), 2, 16000).shape
    (2, 16000)
    """
    seconds = length / rate
    syllables = max(int(4 * seconds), 1) + 2
    base = 80 * np.exp(1.3 * rng.random((count, 1), np.float32))
    pitch = base * np.exp(0.15 * smooth(rng, (count, length), syllables))
    phase = np.cumsum(pitch * np.float32(2 * np.pi / rate), axis=1, dtype=np.float64)
    phase = (phase % (2 * np.pi)).astype(np.float32)
    # Two broad resonances that wander from syllable to syllable.
    centres = [c * np.exp(0.3 * smooth(rng, (count, length), syllables)) for c in _FORMANTS]
    voice = np.zeros((count, length), np.float32)
    for k in range(1, _HARMONICS + 1):
        f = pitch * np.float32(k)
        near = [((f - c) / np.float32(0.4 * middle)) ** 2 for c, middle in zip(centres, _FORMANTS, strict=True)]
        gain = np.exp(-near[0]) + np.exp(-near[1])
        gain = (gain + _BREATH) / np.float32(np.sqrt(k))
        voice += np.where(f < rate / 2, gain, 0) * np.sin(np.float32(k) * phase)
    envelope = np.maximum(smooth(rng, (count, length), 2 * syllables), 0) ** 2
    loudness = np.exp(0.7 * rng.standard_normal((count, 1), np.float32))
    noise = pink(rng, (count, length)) * (np.float32(0.02) + np.float32(0.1) * rng.random((count, 1), np.float32))
    # 1.25: measured over many waves, so that the deviation is near 1.
    made: Floats = (loudness * (voice * envelope * np.float32(1.1) + noise) / np.float32(1.25)).astype(np.float32)
    return made


def spectra(rng: np.random.Generator, count: int, bands: int, frames: int) -> Floats:
    """Return [count, bands, frames] like logarithmic mel spectrograms: gliding ridges over a falling floor.

    >>> spectra(np.random.default_rng(0), 2, 80, 100).shape
    (2, 80, 100)
    """
    band = np.linspace(0, 1, bands, dtype=np.float32)[None, :, None]
    knots = max(frames // 12, 2)
    height = smooth(rng, (count, frames), knots)[:, None, :]
    out = -1.2 * (band - 0.5) + 0.3 * rng.standard_normal((count, bands, frames), np.float32)
    first = 0.08 + 0.1 * rng.random((count, 1), np.float32) + 0.03 * smooth(rng, (count, frames), knots)
    fade = np.clip(smooth(rng, (count, frames), 2 * knots) + np.float32(0.5), 0, 2)[:, None, :]
    for k in range(1, _RIDGES + 1):
        width = np.float32(0.025 + 0.01 * k)
        centre = (first * np.float32(k) ** np.float32(0.8))[:, None, :]
        out += np.float32(2.4 / k**0.5) * fade * np.exp(-(((band - centre) / width) ** 2))
    loud = 0.5 * rng.standard_normal((count, 1, 1), np.float32)
    made: Floats = ((out + 0.5 * height + loud - np.float32(0.55)) / np.float32(1.2)).astype(np.float32)
    return made


def series(rng: np.random.Generator, count: int, features: int, steps: int) -> Floats:
    """Return [count, features, steps] of 1/f noise in time, features correlated."""
    own = pink(rng, (count, features, steps), 0.7)
    shared = pink(rng, (count, max(features // 4, 1), steps), 0.7)
    mixing = rng.standard_normal((features, shared.shape[1]), np.float32) / np.float32(shared.shape[1] ** 0.5)
    mixed: Floats = (np.einsum("fs,nst->nft", mixing, shared) + own) * np.float32(0.5**0.5)
    return mixed


def vectors(rng: np.random.Generator, mixing: Floats, shape: tuple[int, ...]) -> Floats:
    """Return normal numbers whose last axis is correlated as `mixing` [features, factors] says, of deviation 1."""
    factors = rng.standard_normal((*shape[:-1], mixing.shape[1]), np.float32)
    out: Floats = (factors @ mixing.T + rng.standard_normal(shape, np.float32)) * np.float32(0.5**0.5)
    return out


def mixing_of(rng: np.random.Generator, features: int) -> Floats:
    """Return [features, factors] of rows of length 1: a quarter as many factors as there are features."""
    mixing = rng.standard_normal((features, max(features // 4, 1)), np.float32)
    unit: Floats = mixing / np.linalg.norm(mixing, axis=1, keepdims=True)
    return unit

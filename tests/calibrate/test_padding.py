"""Rows of padding are left out of statistics."""

from __future__ import annotations

import numpy as np

from graphprune.calibrate.padding import real_rows, real_tokens

MASK = np.array([[1, 1, 0], [1, 0, 0]])


def everywhere(number: int) -> np.ndarray:
    return np.arange(number)


def test_the_mask_of_attention_tells() -> None:
    real = real_tokens({"input_ids": np.ones((2, 3), np.int64), "attention_mask": MASK})
    assert real is not None and real.tolist() == MASK.astype(bool).tolist()


def test_nothing_tells() -> None:
    ids = np.ones((2, 3), np.int64)
    assert real_tokens({"input_ids": ids}) is None
    assert real_tokens({"attention_mask": np.ones((2, 3))}) is None  # all are real
    assert real_tokens({"attention_mask": np.zeros((2, 3))}) is None
    assert real_tokens({"key_padding_mask": MASK}) is None  # ones mean padding here
    assert real_tokens({"attention_mask": (1 - MASK) * -1e4}) is None  # to be added
    assert real_tokens({"attention_mask": MASK, "mask": MASK}) is None  # which of them?


def test_rows_in_the_order_of_the_design() -> None:
    real = MASK.astype(bool)
    x = np.zeros((2, 3, 4))
    found = real_rows(x, real, ("rows",), lambda number: np.array([0, 2]))
    assert found is not None and found.tolist() == [True, False, True, False]
    heads = real_rows(np.zeros((2, 3, 2, 4)), real, ("rows",), everywhere)
    assert heads is not None and heads.tolist() == [True] * 4 + [False] * 2 + [True] * 2 + [False] * 4
    flat = real_rows(np.zeros((6, 4)), real, ("gemm", False), everywhere)
    assert flat is not None and flat.tolist() == [True, True, False, True, False, False]


def test_rows_that_are_no_tokens_are_all_taken() -> None:
    real = MASK.astype(bool)
    assert real_rows(np.zeros((2, 5, 4)), real, ("rows",), everywhere) is None
    assert real_rows(np.zeros((2, 3, 4)), real, ("conv", None), everywhere) is None
    assert real_rows(np.zeros((6, 6)), real, ("gemm", True), everywhere) is None
    assert real_rows(np.zeros((2, 3, 4)), None, ("rows",), everywhere) is None

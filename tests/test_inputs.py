"""Made-up inputs: what each name and type gets, shapes as users write them, and what is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphprune.errors import UsageError
from graphprune.inputs import InputSpec, parse_input_shapes, synthesise

I64, F32, BOOL = np.dtype("int64"), np.dtype("float32"), np.dtype("bool")


def one(name: str, dtype: Any, shape: tuple[int, ...], bound: int | None = None) -> tuple[np.ndarray[Any, Any], str]:
    feeds, assumed = synthesise([InputSpec(name, np.dtype(dtype), shape, bound)], {})
    assert feeds[name].dtype == (object if np.dtype(dtype).kind in "OU" else np.dtype(dtype))
    assert feeds[name].shape == shape
    return feeds[name], assumed[0]


@pytest.mark.parametrize(
    ("name", "dtype", "value", "phrase"),
    [
        ("attention_mask", I64, 1, "ones"),
        ("attentionMask:0", I64, 1, "ones"),
        ("pixel_mask", np.int32, 1, "ones"),
        ("attention_mask", F32, 1, "ones"),
        ("mask", BOOL, 1, "True"),
        ("bool_masked_pos", BOOL, 1, "True"),
        ("src_key_padding_mask", BOOL, 0, "False, as nothing is padding"),
        ("padding_mask", I64, 1, "ones"),
        ("attention_bias", F32, 0, "zeros"),
        ("additive_mask", np.float16, 0, "zeros"),
        ("mask_bias", ml_dtypes.bfloat16, 0, "zeros"),
        ("token_type_ids", I64, 0, "zeros"),
        ("Segment-IDs", np.int32, 0, "zeros"),
        ("sr", I64, 16000, "16000 Hz"),
        ("sampling_rate", F32, 16000, "16000 Hz"),
        ("sr", np.int8, 127, "127 Hz"),
        ("use_cache_branch", BOOL, 1, "True"),
        ("text", object, "", "empty strings"),
        ("text", np.str_, "", "empty strings"),
    ],
)
def test_names_that_ask_for_a_constant(name: str, dtype: Any, value: object, phrase: str) -> None:
    array, told = one(name, dtype, (2, 5))
    assert (array == np.array(value, dtype=array.dtype)).all()
    assert told == f"{name}: {phrase}"


@pytest.mark.parametrize(
    ("name", "dtype", "bound", "low", "high", "what"),
    [
        ("input_ids", I64, 30522, 1, 30522, "token ids"),
        ("decoderInputIds", np.int32, None, 1, 100, "token ids"),
        ("tokens", np.int8, 30522, 1, 128, "token ids"),
        ("tokens", ml_dtypes.int4, None, 1, 8, "token ids"),
        ("word_ids", I64, 1, 0, 1, "token ids"),
        ("input_ids", I64, 2, 1, 2, "token ids"),
        ("label", I64, None, 0, 2, "integers"),
        ("speaker", I64, 7, 0, 7, "integers"),
        ("flag", np.uint8, None, 0, 2, "integers"),
    ],
)
def test_integers_stay_in_their_range(name: str, dtype: Any, bound: int | None, low: int, high: int, what: str) -> None:
    array, told = one(name, dtype, (40, 50), bound)
    wide = array.astype(np.int64)
    assert wide.min() >= low and wide.max() < high
    assert high - low > 1000 or set(np.unique(wide)) == set(range(low, high))
    assert told == f"{name}: random {what} in [{low}, {high})"


def test_bytes_of_an_image_use_the_whole_range() -> None:
    array, told = one("image", np.uint8, (64, 64, 3))
    assert array.min() == 0 and array.max() == 255
    assert told == "image: random integers in [0, 256)"


@pytest.mark.parametrize("name", ["position_ids", "cache_position", "positions", "pos_ids"])
def test_positions_count_along_the_last_axis(name: str) -> None:
    array, told = one(name, I64, (3, 2, 4))
    np.testing.assert_array_equal(array, np.broadcast_to(np.arange(4), (3, 2, 4)))
    assert told.startswith(f"{name}: positions")
    assert one(name, I64, (5,), bound=3)[0].tolist() == [0, 1, 2, 2, 2]
    assert one(name, I64, ())[0].tolist() == 0


@pytest.mark.parametrize("dtype", [F32, np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize(
    ("name", "deviation", "phrase"),
    [
        ("pixel_values", 1.0, "standard normal"),
        ("position_embeddings", 1.0, "standard normal"),
        ("past_key_values.0.key", 0.1, "normal, deviation 0.1"),
        ("h0", 0.1, "normal, deviation 0.1"),
        ("state", 0.1, "normal, deviation 0.1"),
        ("kv_cache", 0.1, "normal, deviation 0.1"),
        ("encoder_hidden_states", 0.1, "normal, deviation 0.1"),
    ],
)
def test_floats_are_normal(name: str, deviation: float, phrase: str, dtype: Any) -> None:
    array, told = one(name, dtype, (50, 40))
    assert float(array.astype(np.float64).std()) == pytest.approx(deviation, rel=0.15)
    assert told == f"{name}: {phrase}"


def spec(name: str, dtype: Any, *shape: int | str | None) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


@pytest.mark.parametrize(
    ("others", "shapes", "expected"),
    [
        ([spec("x", F32, "n", 80, "frames")], {"x": (2, 80, 50)}, (50, "the full length of axis 2 of x")),
        ([spec("x", F32, None, None, 80)], {"x": (2, 30, 80)}, (30, "the full length of axis 1 of x")),
        ([spec("x", F32, 2, 20, 3)], {}, (20, "the full length of axis 1 of x")),
        (
            [spec("memory", F32, "n", "s", 8), spec("text", I64, "n", "t")],
            {"memory": (2, 9, 8), "text": (2, 4)},
            (4, "the full length of axis 1 of text"),
        ),
        ([spec("wave", F32, "samples")], {"wave": (400,)}, (400, "the full length of axis 0 of wave")),
        ([spec("past_key", F32, 1, 2, 3)], {}, (1, "1, as no other input has a sequence axis")),
        ([], {}, (1, "1, as no other input has a sequence axis")),
    ],
)
def test_lengths_are_full(
    others: list[InputSpec], shapes: dict[str, tuple[int, ...]], expected: tuple[int, str]
) -> None:
    name = "text_lengths"
    feeds, assumed = synthesise([spec(name, I64, 2), *others], shapes)
    assert feeds[name].tolist() == [expected[0]] * 2
    assert assumed[0] == f"{name}: {expected[1]}"


def test_the_same_seed_gives_the_same_and_other_inputs_do_not_matter() -> None:
    x, ids = spec("x", F32, 4, 5), spec("ids", I64, 3)
    feeds, assumed = synthesise([x, ids], {}, seed=3)
    assert list(feeds) == ["x", "ids"] and len(assumed) == 2
    np.testing.assert_array_equal(feeds["x"], synthesise([x, ids], {}, seed=3)[0]["x"])
    np.testing.assert_array_equal(feeds["x"], synthesise([ids, x], {}, seed=3)[0]["x"])
    assert not np.array_equal(feeds["x"], synthesise([x], {}, seed=4)[0]["x"])
    twin = synthesise([spec("x2", F32, 4, 5)], {}, seed=3)[0]["x2"]
    assert not np.array_equal(feeds["x"], twin)


def test_shapes_fill_open_axes_and_scalars_need_none() -> None:
    feeds, _ = synthesise([spec("x", F32, "n", 3, None), spec("sr", I64)], {"x": (0, 3, 7)})
    assert feeds["x"].shape == (0, 3, 7) and feeds["sr"].shape == ()


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({}, r"input 'x' has open sizes: give its shape, as x:\?,3,\?"),
        ({"x": (1, 4, 7)}, r"given the shape \[1, 4, 7\], but the model takes \[\?,3,\?\]"),
        ({"x": (1, 3)}, r"given the shape \[1, 3\], but the model takes"),
        ({"x": (-1, 3, 7)}, r"given the shape \[-1, 3, 7\], but the model takes"),
        ({"x": (1, 3, 7), "y": (1,)}, "the model has no input 'y'; its inputs are 'x'"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        synthesise([spec("x", F32, "n", 3, None)], shapes)


def test_a_type_that_cannot_be_made_up() -> None:
    with pytest.raises(UsageError, match="input 'x' is of type complex64"):
        synthesise([spec("x", np.complex64, 1)], {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:1,3,224,224", {"x": (1, 3, 224, 224)}),
        ("x:1x3x224X224", {"x": (1, 3, 224, 224)}),
        (" x : 1, 3 ", {"x": (1, 3)}),
        ("serving_default:0:8", {"serving_default:0": (8,)}),
        ("past:1,4,0,64", {"past": (1, 4, 0, 64)}),
    ],
)
def test_shapes_as_written(text: str, expected: dict[str, tuple[int, ...]]) -> None:
    assert parse_input_shapes([text]) == expected


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["x"], "'x' is not of the form name:1,3,224,224"),
        ([":1,3"], "':1,3' is not of the form"),
        (["x:"], "'x:' is not of the form"),
        (["x:1,,3"], "'' is not a size"),
        (["x:batch,3"], "'batch' is not a size; write whole numbers, x:1,3,224,224"),
        (["x:1,-3"], "'-3' is not a size"),
        (["x:1.5"], r"'1\.5' is not a size"),
        (["x:1", "x:2"], "input 'x' is given two shapes"),
    ],
)
def test_shapes_written_wrongly(texts: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_input_shapes(texts)

"""Calibration data as text: pieces that fill the sequence, and what goes with the ids."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from taking import BOOL, I64, F, read, taking

from graphprune.calibrate import open_data
from graphprune.errors import UsageError

pytest.importorskip("tokenizers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{k}" for k in range(100)), "über"]
BERT = taking(**dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (I64, "batch", "seq")))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write(tmp_path / "tokenizer.json", special=True)


def write(path: Path, special: bool) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(path))
    return path


def put(folder: Path, words: int, name: str = "a.txt") -> Path:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(" ".join(f"w{k % 90 + 10}" for k in range(words)), encoding="utf-8")
    return folder / name


def test_pieces_of_a_text(tmp_path: Path, tokenizer: Path) -> None:
    samples = open_data(put(tmp_path, 1000), BERT, tokenizer=tokenizer, length=32)
    ids = np.concatenate(read(samples, "input_ids"))
    assert ids.shape == (samples.count, 32) and 28 <= len(ids) <= 36
    assert (ids[:, 0] == 2).all() and (ids[:-1, -1] == 3).all()
    inner = ids[:-1, 1:-1] - 4 - 10
    assert ((np.diff(inner, axis=1) % 90) == 1).all()  # words in the order of the text, none left out inside a piece
    steps = np.diff(ids[:, 1]) % 90  # from piece to piece
    assert (steps >= 28).all() and (steps <= 36).all()
    assert any("32 a piece" in said for said in samples.assumed)


def test_short_text_is_padded_and_masked(tmp_path: Path, tokenizer: Path) -> None:
    (feed,) = open_data(put(tmp_path, 5), BERT, tokenizer=tokenizer, length=16).open()
    assert feed["attention_mask"].tolist() == [[1] * 7 + [0] * 9]
    assert feed["input_ids"][0, 7:].tolist() == [0] * 9
    assert not feed["token_type_ids"].any() and feed["token_type_ids"].dtype == np.int64


def test_short_text_is_repeated_where_padding_cannot_be_told(tmp_path: Path, tokenizer: Path) -> None:
    samples = open_data(put(tmp_path, 5), taking(input_ids=(I64, "n", "s")), tokenizer=tokenizer, length=16)
    (ids,) = read(samples, "input_ids")
    assert ids[0, :7].tolist() == ids[0, 7:14].tolist() and "short pieces repeated" in " ".join(samples.assumed)


def test_the_padding_of_the_tokenizer_is_used(tmp_path: Path, tokenizer: Path) -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(tokenizer))
    made.enable_padding(direction="left", pad_id=1, pad_token="[UNK]")
    made.enable_truncation(4)
    made.save(str(tokenizer))
    model = taking(input_ids=(I64, "n", "s"), attention_mask=(BOOL, "n", "s"), position_ids=(I64, "n", "s"))
    (feed,) = open_data(put(tmp_path, 5), model, tokenizer=tokenizer, length=10).open()
    assert feed["input_ids"][0, :3].tolist() == [1, 1, 1]
    assert feed["attention_mask"].tolist() == [[False] * 3 + [True] * 7]
    assert feed["position_ids"].tolist() == [[0, 0, 0, 0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(("inputs", "length"), [({}, 128), ({"past_key_values.0.key": (F, "n", 2, "past", 4)}, 256)])
def test_usual_lengths(tmp_path: Path, tokenizer: Path, inputs: dict, length: int) -> None:
    model = taking(input_ids=(I64, "n", "s"), **inputs)
    assert read(open_data(put(tmp_path, 900), model, tokenizer=tokenizer), "input_ids")[0].shape == (1, length)


def test_decoders_begin_without_a_past(tmp_path: Path, tokenizer: Path) -> None:
    model = taking(
        **{
            "input_ids": (I64, "batch", "sequence"),
            "attention_mask": (I64, "batch", "past_sequence_length + sequence"),
            "position_ids": (I64, "batch", "sequence"),
            "past_key_values.0.key": (F, "batch", 2, "past_sequence_length", 4),
            "use_cache_branch": (BOOL, 1),
        }
    )
    samples = open_data(put(tmp_path, 400), model, tokenizer=tokenizer, length=20)
    feed = next(samples.batches(3))
    assert feed["past_key_values.0.key"].shape == (3, 2, 0, 4)
    assert feed["attention_mask"].shape == feed["position_ids"].shape == (3, 20)
    assert feed["use_cache_branch"].tolist() == [False]
    assert "no past before the text" in samples.assumed


def test_encoders_with_decoders_read_text_on_both_sides(tmp_path: Path, tokenizer: Path) -> None:
    model = taking(input_ids=(I64, 2, 12), decoder_input_ids=(I64, 2, 7))
    samples = open_data(put(tmp_path, 300), model, tokenizer=tokenizer)
    feed = next(samples.open())
    assert feed["input_ids"].shape == (2, 12) and feed["decoder_input_ids"].shape == (2, 7)
    assert (feed["decoder_input_ids"][:, 0] == 2).all() and any("2 samples a run" in s for s in samples.assumed)


def test_other_inputs_are_made_up(tmp_path: Path, tokenizer: Path) -> None:
    model = taking(input_ids=(I64, "n", "s"), pixel_values=(F, "n", 3, 4, 4), lengths=(I64, "n"))
    samples = open_data(put(tmp_path, 300), model, tokenizer=tokenizer, length=9)
    feed = next(samples.batches(2))
    assert feed["pixel_values"].shape == (2, 3, 4, 4) and feed["lengths"].tolist() == [9, 9]


def test_letters_of_several_bytes_are_never_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeff" + "über " * 2000, encoding="utf-8")
    tokenizer = write(tmp_path / "tokenizer.json", special=False)
    samples = open_data(tmp_path / "a.txt", taking(input_ids=(I64, "n", "s")), tokenizer=tokenizer, length=11)
    ids = np.concatenate(read(samples, "input_ids"))
    assert len(ids) > 150 and (ids == WORDS.index("über")).all()


def test_a_folder_of_texts(tmp_path: Path, tokenizer: Path) -> None:
    folder = tmp_path / "texts"
    for name, words in (("b.md", 10), ("a.txt", 300), ("c.txt", 0)):
        folder.mkdir(exist_ok=True)
        put(folder, words, name)
    samples = open_data(folder, BERT, tokenizer=tokenizer, length=32, limit=4)
    assert samples.count == 4
    everything = open_data(folder, BERT, tokenizer=tokenizer, length=32)
    assert next(iter(everything.pick([everything.count - 1]).open()))["attention_mask"].sum() == 12  # the short file


def test_another_ending_is_text_when_a_tokenizer_is_given(tmp_path: Path, tokenizer: Path) -> None:
    path = put(tmp_path, 100, "notes.rst")
    assert open_data(path, BERT, tokenizer=tokenizer, length=16).count > 3
    with pytest.raises(UsageError, match="of no kind that can be read"):
        open_data(path, BERT)


def test_what_is_refused(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, 100)
    with pytest.raises(UsageError, match="without a tokenizer: add --tokenizer"):
        open_data(path, BERT)
    with pytest.raises(UsageError, match="no such tokenizer"):
        open_data(path, BERT, tokenizer=tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(UsageError, match=r"bad.json: is not a tokenizer.json"):
        open_data(path, BERT, tokenizer=tmp_path / "bad.json")
    with pytest.raises(UsageError, match=r"no input of the model takes token ids: x \[\?, 3\] float32"):
        open_data(path, taking(x=(F, "n", 3)), tokenizer=tokenizer)
    with pytest.raises(UsageError, match="length is 9, but the model's input 'input_ids' takes 8"):
        open_data(path, taking(input_ids=(I64, 1, 8)), tokenizer=tokenizer, length=9)
    with pytest.raises(UsageError, match=r"a.txt, from byte 0: input 'input_ids' has .* table of 20 rows"):
        open_data(path, BERT, tokenizer=tokenizer, length=64, bounds={"input_ids": 20})
    broken = ((b"", "is empty"), (b"\xff\xfe\x00a", "is not UTF-8"), (b"a\0b", "zero bytes"), (b" ", "no tokens"))
    for content, said in broken:
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"a.txt: .*{said}"):
            open_data(path, BERT, tokenizer=tokenizer)
    put(tmp_path, 10)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'graphprune\[text\]'"):
        open_data(path, BERT, tokenizer=tokenizer)

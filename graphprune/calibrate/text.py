"""Calibration data that is text: pieces of files, as the token ids of a `tokenizer.json`."""

from __future__ import annotations

import codecs
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graphprune.calibrate.one_by_one import Making, one_by_one
from graphprune.calibrate.samples import Feed, Samples, Source
from graphprune.calibrate.wanted import Wanted, is_tokens, written
from graphprune.errors import UsageError
from graphprune.inputs import InputSpec, plain
from graphprune.sizes import PAST

Array = npt.NDArray[Any]
_ENCODER, _DECODER = 128, 256  # tokens of a piece where nothing says
_LOOKED_AT = 20_000  # bytes of the first file, to learn how many a token takes
_SPARE = 2  # times the bytes that a piece takes on average are read for it
_LONGEST_WORD = 200


class _Piece(NamedTuple):
    """Text from one place of a file on."""

    path: Path
    start: int

    def __str__(self) -> str:
        return f"{self.path}, from byte {self.start}"


class _Encoded(NamedTuple):
    ids: Array
    mask: Array
    kinds: Array


def open_text(
    files: Sequence[Path], wanted: Wanted, source: Source, tokenizer: Path | None, length: int | None = None
) -> Samples:
    """Return a sample per piece of text that fills the sequence; a short file is one piece, padded.

    The sequence is as long as the model says, else `length` tokens, else 128, or 256 where it carries a past. Raises
    UsageError for text that is not UTF-8, a model without token ids, a tokenizer that is missing or not its own.
    """
    specs = [s for s in wanted.specs if is_tokens(s)] or [
        s for s in wanted.specs if s.dtype.kind in "iu" and len(s.shape) == 2 and "mask" not in plain(s.name)
    ][:1]
    if not specs:
        inputs = "; ".join(f"{s.name} [{written(wanted.symbols[s.name])}] {s.dtype}" for s in wanted.specs)
        raise UsageError(f"text is given, but no input of the model takes token ids: {inputs}")
    encoder = _Encoder(_tokenizer(tokenizer))
    lengths = {s.name: _length(s, wanted, length) for s in specs}
    fillers = {s.name: fill for s in wanted.specs if s not in specs and (fill := _filler(s, specs[0])) is not None}
    masked = any("mask" in plain(name) for name in fillers)
    pieces, per_token = _pieces(files, encoder, max(lengths.values()))

    def make(piece: _Piece) -> Feed:
        text = _read(piece, round(max(lengths.values()) * per_token * _SPARE) + _LONGEST_WORD)
        encoded = {name: encoder.encode(text, size, masked) for name, size in lengths.items()}
        feed = {s.name: _put(encoded[s.name].ids, s) for s in specs}
        main = encoded[specs[0].name]
        return feed | {s.name: _put(fillers[s.name](main), s) for s in wanted.specs if s.name in fillers}

    assumed = [f"{name}: tokens of the text, {size} a piece, by {tokenizer}" for name, size in lengths.items()]
    assumed += [f"{name}: by the tokenizer" for name in fillers]
    assumed.append("short pieces " + ("padded" if masked else "repeated to fill the sequence"))
    if max(lengths.values()) > 1 and any(PAST.search(s.name) for s in wanted.specs):
        assumed.append("no past before the text")
    want = specs[0].shape
    per_run = want[0] if len(want) > 1 and isinstance(want[0], int) else 1
    return one_by_one(pieces, make, Making(wanted, str, per_run), source, tuple(assumed))


class _Encoder:
    """A tokenizer that fills a sequence."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.padding = tokenizer.padding or {}
        tokenizer.no_padding()
        tokenizer.no_truncation()

    def count(self, text: str) -> int:
        """Return how many tokens a text has, without special ones."""
        self.tokenizer.no_truncation()
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, text: str, size: int, masked: bool) -> _Encoded:
        """Return the first tokens of a text; a short one is padded if the model can be told so, else repeated."""
        self.tokenizer.enable_truncation(size)
        found = self.tokenizer.encode(text)
        if len(found.ids) < size and masked:
            known = {k: self.padding[k] for k in ("pad_id", "pad_token", "direction") if k in self.padding}
            found.pad(size, **known)
        parts = (found.ids, found.attention_mask, found.type_ids)
        return _Encoded(*(np.resize(np.array(part, np.int64), size) for part in parts))


def _length(spec: InputSpec, wanted: Wanted, length: int | None) -> int:
    """Return how many tokens one sample has."""
    size = spec.shape[-1]
    if isinstance(size, int):
        if length not in (None, size):
            raise UsageError(f"length is {length}, but the model's input {spec.name!r} takes {size} tokens")
        return size
    return length or (_DECODER if any(PAST.search(s.name) for s in wanted.specs) else _ENCODER)


def _filler(spec: InputSpec, ids: InputSpec) -> Callable[[_Encoded], Array] | None:
    """Return what an input beside the ids is filled with, None if the tokenizer knows nothing about it."""
    name = plain(spec.name)
    if re.search(r"use_cache", name) and spec.dtype.kind == "b":
        return lambda encoded: np.zeros(1)
    alike = len(spec.shape) == len(ids.shape) and (
        not isinstance(spec.shape[-1], int) or spec.shape[-1] == ids.shape[-1]
    )
    if not alike or "decoder" in name or spec.dtype.kind == "O":
        return None
    if "mask" in name and not re.search(r"bias|pad|additive|query|global", name) and ids.shape[-1] != 1:
        return lambda encoded: encoded.mask
    if spec.dtype.kind not in "iu":
        return None
    if re.search(r"token_type|segment|_type_ids?_", name):
        return lambda encoded: encoded.kinds
    if re.search(r"_pos(itions?)?_", name):
        return lambda encoded: np.maximum(np.cumsum(encoded.mask) - 1, 0)
    return None


def _put(values: Array, spec: InputSpec) -> Array:
    """Return values in the input's type, with an axis for the sample where it has one."""
    array = values.astype(spec.dtype)
    return array[None] if len(spec.shape) > 1 else array


def _tokenizer(path: Path | None) -> Any:
    if path is None:
        raise UsageError("text is given without a tokenizer: add --tokenizer tokenizer.json, of the model")
    try:
        library = importlib.import_module("tokenizers")
    except ImportError as error:
        raise UsageError("reading text needs tokenizers: pip install 'graphprune[text]'") from error
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"{path}: no such tokenizer; give a tokenizer.json")
    try:
        return library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise UsageError(f"{path}: is not a tokenizer.json ({error})") from error


def _pieces(files: Sequence[Path], encoder: _Encoder, length: int) -> tuple[list[_Piece], float]:
    """Return where the pieces of text begin, and how many bytes a token takes.

    Each starts as far behind the last as `length` tokens take on average, so that no file is read to find them.
    """
    sizes = {path: _size(path) for path in files}
    full = [path for path in files if sizes[path]]
    if not full:
        raise UsageError(f"{files[0]}: is empty")
    text = _read(_Piece(full[0], 0), _LOOKED_AT)
    tokens = encoder.count(text)
    if not tokens:
        raise UsageError(f"{full[0]}: the tokenizer makes no tokens of it")
    per_token = max(len(text.encode()) / tokens, 0.25)
    stride = max(int(length * per_token), 1)
    pieces = [_Piece(path, start) for path in full for start in range(0, max(sizes[path] - stride // 2, 1), stride)]
    return pieces, per_token


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _read(piece: _Piece, size: int) -> str:
    """Return some text from a place on, from the first whole word."""
    try:
        with piece.path.open("rb") as file:
            file.seek(piece.start)
            content = file.read(size)
        if piece.start:
            content = content.lstrip(bytes(range(0x80, 0xC0)))  # the rest of a letter of several bytes
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{piece.path}: is not UTF-8 text ({error})") from error
    if "\0" in text:
        raise UsageError(f"{piece.path}: is not text: it holds zero bytes")
    if piece.start:
        word = re.search(r"\s", text[:_LONGEST_WORD])
        text = text[word.end() :] if word else text
    return text

"""A JSON array of objects: a byte stream in, one row of text per element out, whatever the size of the array.

Strangers write these files too. An element that cannot be parsed is a malformed row, and reading goes on where the
next one seems to begin; what cannot be recovered is one last malformed row. Text is held for one element at most, and
the work is linear in the bytes whatever they are. It knows no tables and no files.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from dataengine.sources.fields import flat_fields
from dataengine.sources.lines import MAX_RECORD_BYTES, Row

_CHUNK_BYTES = 2**20
_BEHIND_CHARS = 2**16  # every JSONDecodeError counts the lines of all text before it
_TAIL_CHARS = 4096  # of text searched in vain: a beginning may straddle two reads
_SPACE = re.compile(r"[\ufeff\s]*")
_GAP = re.compile(r"[\s,]*")
_BEGINNING = re.compile(r',\s*(?=\{\s*")')
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|([\[{])|([\]}])', re.DOTALL)
_DECODER = json.JSONDecoder()


def array_rows(stream: BinaryIO, names: Sequence[str]) -> Iterator[Row]:
    """Fields `names` of each element of the array in `stream`, null where it lacks one.

    An element that is no object, is over MAX_RECORD_BYTES characters, or holds a list or an object in a wanted field
    is malformed; so is what follows the array, or its end where that is missing.
    """
    text = _Window(stream)
    text.skip(_SPACE)
    text.position += 1
    number = 0
    while (found := text.skip(_GAP)) not in ("", "]"):
        number += 1
        fields, is_lost = _next_element(text, names)
        if isinstance(fields, str):
            yield f"element {number}: {fields}" + ("; nothing after it can be read" if is_lost else "")
        else:
            yield fields
        if is_lost:
            return
    if not found:
        yield f"after element {number}: the array has no end, so the file may be cut"
        return
    text.position += 1
    if text.skip(_SPACE):
        yield f"after element {number}: text follows the end of the array"


class _Window:
    """Text of a stream from `position` on: MAX_RECORD_BYTES characters ahead, unless the stream ends before."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_last = False
        self.text = ""
        self.position = 0

    def fill(self) -> None:
        """Drop what is behind, and read what is wanted ahead."""
        if self.position > _BEHIND_CHARS:
            self.text, self.position = self.text[self.position :], 0
        while not self._is_last and len(self.text) - self.position < MAX_RECORD_BYTES:
            raw = self._stream.read(_CHUNK_BYTES)
            self._is_last = not raw
            self.text += self._decoder.decode(raw, final=self._is_last)

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Pass what `pattern`, which fits anything, fits; the character after it, "" at the end of the stream."""
        while True:
            self.fill()
            match = pattern.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text) or self._is_last:
                return self.text[self.position : self.position + 1]

    def seek(self, begin: int) -> bool:
        """Go to where an element seems to begin after `begin`; False when there is none to the end of the stream."""
        self.position = begin
        while not (match := _BEGINNING.search(self.text, self.position)):
            if self._is_last:
                return False
            self.position = max(self.position, len(self.text) - _TAIL_CHARS)
            self.fill()
        self.position = match.end()
        return True


def _next_element(text: _Window, names: Sequence[str]) -> tuple[Row, bool]:
    """The fields of the element at the window's position or what is wrong with it, and whether all else is lost."""
    try:
        value, end = _DECODER.raw_decode(text.text, text.position)
    except json.JSONDecodeError as error:
        return f"broken JSON: {error.msg}", not text.seek(error.pos)
    except (ValueError, RecursionError):  # a number of thousands of digits, or brackets in brackets without end
        return "JSON nested too deep, or a number too long", not _pass_brackets(text)
    num_chars = end - text.position
    text.position = end
    if num_chars > MAX_RECORD_BYTES:
        return f"longer than {MAX_RECORD_BYTES:,} characters", False
    return flat_fields(value, names), False


def _pass_brackets(text: _Window) -> bool:
    """Go behind the element that was not parsed, by its brackets; False when they do not close in time.

    A search for the next beginning would find those inside it, one by one, and parse each to the same end.
    """
    if text.text[text.position] not in "[{":
        return text.seek(text.position)
    depth = 0
    for token in _TOKEN.finditer(text.text, text.position, text.position + MAX_RECORD_BYTES):
        depth += (token[1] is not None) - (token[2] is not None)
        if depth == 0:
            text.position = token.end()
            return True
    return False

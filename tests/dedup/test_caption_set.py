from __future__ import annotations

from pathlib import Path

from dataengine.dedup.caption_set import read_captions
from dataengine.storage.store import Root


def test_rows_are_the_lines_that_an_editor_numbers(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("\ufeffone\u2028still one\r\n\ntwo\x85\x0cstill two\nthree\n".encode())
    found = read_captions(Root(str(tmp_path)), "prompts.txt", "caption").to_pylist()
    assert found == ["one\u2028still one", "", "two\x85\x0cstill two", "three"]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"")
    assert read_captions(Root(str(tmp_path)), "prompts.txt", "caption").to_pylist() == []

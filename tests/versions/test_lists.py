from __future__ import annotations

import pytest

from dataengine.errors import InputError
from dataengine.versions.lists import Entry, parse_list

KEY, SHA256, PHASH = "0a" * 16, "0B" * 32, "00ff" * 4


def test_forms_tell_the_kind() -> None:
    text = f"\ufeff# why\n\nhttp://a.test/X.jpg\n*.Bad.Example\n{KEY}\n{SHA256}\n{PHASH}\nkey {KEY}\ndomain a.test\n"
    assert parse_list(text.encode(), "list.txt") == [
        Entry("url", "http://a.test/X.jpg"),
        Entry("domain", "*.bad.example"),
        Entry("key", KEY),
        Entry("sha256", SHA256.lower()),
        Entry("phash", PHASH),
        Entry("domain", "a.test"),
    ]


@pytest.mark.parametrize(("name", "separator"), [("list.csv", ","), ("list.TSV", "\t")])
def test_columns_tell_the_kind(name: str, separator: str) -> None:
    lines = [["ticket", "URL", "sha256"], ["7", "file:///x", ""], ["8", "", SHA256], ["9", "http://a.test/,x", ""]]
    text = "\r\n".join(separator.join(f'"{cell}"' for cell in line) for line in lines)
    assert parse_list(text.encode(), name) == [
        Entry("url", "file:///x"),
        Entry("sha256", SHA256.lower()),
        Entry("url", "http://a.test/,x"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: holds no entry; wanted one a line"),
        ("a.txt", b"# nothing\n", "holds no entry"),
        ("a.csv", b"url\n", "holds no entry"),
        ("a.csv", b"", r"columns \[\]; wanted a header"),
        ("a.csv", b"link,why\nx,y\n", r"columns \['link', 'why'\]; wanted a header with some of url"),
        ("a.txt", b"\xff\xfe\n", "not UTF-8"),
        ("a.txt", b"fine.test\nno domain/at all\n", r"1 entries cannot be read; .*\n  line 2: got 'no domain/at all'"),
        ("a.txt", b"0" * 40, "line 1: .*looks like a SHA-1"),
        (
            "a.txt",
            b"fine.test\n" + b"0a" * 15 + b"0\n",
            "1 entries .*\n  line 2: .*a key or hash of 31 characters; wanted a key",
        ),
        ("a.txt", b"key 12", "line 1: got '12', wanted key as 32 hex characters"),
        ("a.csv", b"sha256\nabc\n", "line 2: got 'abc', wanted sha256 as 64 hex"),
        ("a.txt", b"a/b\n" * 12, r"12 entries cannot be read(.*\n){11}  and 2 more"),
    ],
)
def test_bad_lists_say_what_is_wrong_and_where(name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_list(content, name)

"""Keys: told apart by source and URL, and refused when they are none."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dataengine.keys import KEY_CHARS, key_bits, key_ranges, url_keys


def test_bits_are_the_leading_half_of_a_key() -> None:
    keys = url_keys("web", [f"http://a.test/{number}" for number in range(50)])
    assert key_bits(pa.array(keys)).tolist() == [int(key[:16], 16) for key in keys]
    assert key_bits(pa.array([], pa.string())).tolist() == []


@pytest.mark.parametrize("wrong", [None, "ab", "é" * KEY_CHARS * 2])
def test_what_is_no_key_is_refused(wrong: str | None) -> None:
    with pytest.raises(ValueError, match="32 hex characters"):
        key_bits(pa.array(["0" * KEY_CHARS, wrong]))


def test_equal_ranges_cover_every_key() -> None:
    assert key_ranges(["0" * KEY_CHARS, "7f" * 16, "80" * 16, "f" * KEY_CHARS], 2).tolist() == [0, 0, 1, 1]

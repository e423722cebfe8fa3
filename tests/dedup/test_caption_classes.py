from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.caption_classes import by_slot, find_copies
from dataengine.keys import hex_keys, key_bytes, url_keys

DIGESTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=30)


def digests(pairs: list[tuple[int, int]]) -> np.ndarray:
    """Digests whose halves repeat, so that ties are broken by the second half, then by key."""
    found = np.zeros((len(pairs), 16), np.uint8)
    for row, (high, low) in enumerate(pairs):
        found[row, 0], found[row, 15] = high, low
    return found


@given(DIGESTS, st.randoms())
def test_classes_are_those_of_a_dictionary(pairs: list[tuple[int, int]], random: object) -> None:
    hashes = digests(pairs)
    keys = url_keys("s", [str(number) for number in range(len(pairs))])
    copies = find_copies(hashes, key_bytes(pa.array(keys, pa.string())))
    members: dict[bytes, list[str]] = {}
    for key, digest in zip(keys, hashes, strict=True):
        members.setdefault(digest.tobytes(), []).append(key)
    assert [keys[row] for row in copies.representatives] == [min(members[digest]) for digest in sorted(members)]
    table = copies.table(key_bytes(pa.array(keys, pa.string())))
    wanted = sorted((min(found), key) for found in members.values() if len(found) > 1 for key in found)
    assert list(zip(table["class_key"].to_pylist(), table["key"].to_pylist(), strict=True)) == wanted
    assert set(table["kind"].to_pylist()) <= {"caption_exact"}


def test_one_caption_a_million_times_is_a_class_of_a_million_rows() -> None:
    rng = np.random.default_rng(1)
    keys = rng.integers(0, 256, (1_000_000, 16), dtype=np.uint8)
    copies = find_copies(np.full((len(keys), 16), 7, np.uint8), keys)
    assert len(copies.representatives) == 1
    table = copies.table(keys)
    assert len(table) == 1_000_000
    smallest = min(hex_keys(keys).to_pylist())
    assert table["class_key"].unique().to_pylist() == [smallest]


def test_rows_are_cut_by_slot_in_their_order() -> None:
    rows, hashes = pa.table({"key": list(range(7))}), np.zeros((7, 16), np.uint8)
    hashes[:, 0] = [3, 0, 3, 1, 0, 3, 255]
    cut, edges = by_slot(rows, hashes)
    assert cut["key"].to_pylist() == [1, 4, 3, 0, 2, 5, 6]
    assert edges.tolist() == [0, 2, 3, 3, *[6] * 252, 7]
    again, same = by_slot(cut, hashes[cut["key"].to_numpy()])
    assert again.equals(cut)
    assert np.array_equal(same, edges)
    assert by_slot(rows.slice(0, 0), hashes[:0])[1].tolist() == [0] * 257

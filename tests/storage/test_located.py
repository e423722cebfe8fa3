"""Ranges of objects: the right bytes in order whatever the order asked, in few requests where they lie together."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.errors import CorruptObject
from dataengine.storage import located
from dataengine.storage.located import LocatedReads, Place, places_of, read_located
from dataengine.storage.store import Root

NUM_BYTES = 300_000
PLACES = st.none() | st.tuples(st.sampled_from(["a.bin", "b.bin"]), st.integers(0, 290_000), st.integers(0, 10_000))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    folder = tmp_path_factory.mktemp("objects")
    for number, name in enumerate(("a.bin", "b.bin")):
        (folder / name).write_bytes(bytes((i * 7 + i // 251 + number) % 256 for i in range(NUM_BYTES)))
    return Root(str(folder))


@given(places=st.lists(PLACES, max_size=40))
def test_every_place_gives_its_bytes(root: Root, places: list[Place | None]) -> None:
    found = list(read_located(root, places))
    assert found == [place and root.get_range(*place) for place in places]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    calls: list[tuple[str, int, int]] = []
    get_range = Root.get_range

    def counting(self: Root, path: str, offset: int, nbytes: int) -> bytes:
        calls.append((path, offset, nbytes))
        return get_range(self, path, offset, nbytes)

    monkeypatch.setattr(Root, "get_range", counting)
    return calls


def test_neighbours_are_read_in_one_request(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    places: list[Place | None] = [("a.bin", start, 900) for start in range(0, 50_000, 1000)]
    places[3:3] = [None]
    assert [content and len(content) for content in read_located(root, places)].count(900) == 50
    assert calls == [("a.bin", 0, 49_900)]


def test_distant_places_and_other_objects_are_read_apart(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    places: list[Place | None] = [("a.bin", 0, 10), ("a.bin", 200_000, 10), ("b.bin", 200_010, 10), ("b.bin", 0, 10)]
    assert len(list(read_located(root, places))) == 4
    assert sorted(calls) == sorted(place for place in places if place)


def test_what_is_read_ahead_is_bounded(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(located, "_AHEAD_BYTES", 10_000)
    monkeypatch.setattr(located, "_MAX_RUN_BYTES", 5_000)
    calls = counted(monkeypatch)
    reader = read_located(root, [("a.bin", start, 5_000) for start in range(0, NUM_BYTES, 5_000)])
    next(reader)
    assert len(calls) <= 3
    assert len(list(reader)) == NUM_BYTES // 5_000 - 1


def test_an_object_that_ends_early_is_named(root: Root) -> None:
    with pytest.raises(CorruptObject, match=r"a\.bin"):
        list(read_located(root, [("a.bin", NUM_BYTES - 5, 10)]))


def test_places_come_from_columns() -> None:
    columns: dict[str, list[object]] = {"object": ["x", None], "offset": [3, None], "nbytes": [4, None]}
    assert places_of(columns) == [("x", 3, 4), None]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 90_000), st.integers(0, 3000)), max_size=40))
def test_views_are_filled_in_any_order(drawn: list[tuple[int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        contents = [np.random.default_rng(number).bytes(100_000) for number in range(2)]
        for number, content in enumerate(contents):
            (Path(folder) / f"{number}").write_bytes(content)
        places = [(str(number), offset, nbytes) for number, offset, nbytes in drawn]
        views = [memoryview(bytearray(nbytes)) for _, _, nbytes in places]
        checked: list[int] = []
        with LocatedReads(Root(folder), is_local=True) as reads:
            reads.begin(places, views, checked.append)()
        assert [bytes(view) for view in views] == [contents[n][o : o + size] for n, o, size in drawn]
        assert sorted(checked) == list(range(len(places)))


def test_what_a_check_raises_the_wait_raises(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(bytes(10))

    def refuse(_: int) -> None:
        raise CorruptObject("not these bytes")

    with LocatedReads(Root(str(tmp_path)), is_local=True) as reads, pytest.raises(CorruptObject, match="not these"):
        reads.begin([("0", 0, 5)], [memoryview(bytearray(5))], refuse)()

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from dataengine.dedup.classes import classes, representatives
from dataengine.keys import url_keys
from dataengine.schemas import CLASS


@given(st.lists(st.sampled_from(["x", "y", "z", None]), max_size=12), st.randoms())
def test_classes_are_the_shared_hashes(hashes: list[str | None], random: object) -> None:
    keys = url_keys("s", [str(row) for row in range(len(hashes))])
    rows = list(zip(keys, hashes, strict=True))
    random.shuffle(rows)  # type: ignore[attr-defined]
    given_keys = pa.array([key for key, _ in rows], pa.string())
    given_hashes = pa.array([digest for _, digest in rows], pa.string())
    members: dict[str, list[str]] = {}
    for key, digest in rows:
        if digest is not None:
            members.setdefault(digest, []).append(key)
    wanted = sorted((min(group), key) for group in members.values() if len(group) > 1 for key in group)
    table = CLASS.check(classes(given_keys, given_hashes, "pixels"))
    assert list(zip(table["class_key"].to_pylist(), table["key"].to_pylist(), strict=True)) == wanted
    speakers = given_keys.filter(representatives(given_keys, given_hashes)).to_pylist()
    alone = {key for key, digest in rows if digest is None}
    assert set(speakers) == alone | {min(group) for group in members.values()}

"""Shards by the column are the shards that were put in."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.trainer.index import Shard, ShardTable

TEXT = st.text(max_size=6)
SHARD = st.builds(Shard, TEXT, TEXT, TEXT, st.integers(0, 2**62), TEXT, TEXT, TEXT)


@given(st.lists(SHARD, max_size=5))
def test_a_table_is_a_sequence_of_its_shards(shards: list[Shard]) -> None:
    table = ShardTable(shards)
    for same in (table, pickle.loads(pickle.dumps(table))):
        assert list(same) == shards
        assert [same[number] for number in range(-len(shards), len(shards))] == shards * 2
        assert same[1:4] == shards[1:4]
        assert same.names() == [shard.name for shard in shards]
    with pytest.raises(IndexError):
        table[len(shards)]

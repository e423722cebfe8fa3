"""Every kind of store keeps the same promises: the suite runs on a local folder and on a real S3 server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import obstore.exceptions
import pytest

from dataengine.errors import ConfigError, CorruptObject, MissingObject, StorageError
from dataengine.storage.store import Root


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param == "local":
        return Root(str(tmp_path))
    options = request.getfixturevalue("s3_server")
    return Root(f"s3://lake/{tmp_path.name}", tuple(sorted(options.items())))


def test_create_keeps_the_first_content_for_ever(root: Root) -> None:
    assert root.create("a/b.json", b"first") == b"first"
    assert root.create("a/b.json", b"second") == b"first"
    assert root.get("a/b.json") == b"first"


def test_create_has_one_winner_among_many_writers(root: Root) -> None:
    contents = [f"writer {i}".encode() for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        seen = set(pool.map(lambda content: root.create("race", content), contents))
    assert seen == {root.get("race")}


def test_get_range_is_exact_and_never_short(root: Root) -> None:
    root.put("object", bytes(range(100)))
    assert root.get_range("object", 10, 5) == bytes(range(10, 15))
    assert root.get_range("object", 10, 0) == b""
    with pytest.raises((CorruptObject, StorageError)):
        root.get_range("object", 90, 20)


def test_missing_object_is_named(root: Root) -> None:
    for read in (root.get, lambda path: root.get_range(path, 0, 1), root.open):
        with pytest.raises(MissingObject, match="no/such"):
            read("no/such")
    assert root.size("no/such") is None
    assert not root.exists("no/such")
    assert root.fingerprint("no/such") is None


def test_a_copy_says_which_end_is_at_fault(root: Root, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    root.put("there", b"1")
    with pytest.raises(MissingObject, match="gone: no such object"):
        root.copy("gone", "copied")
    if root.local_path("") is not None:
        with pytest.raises(StorageError, match="file/copied: "):
            root.copy("there", "file/copied")


def test_writer_gives_size_and_hash_and_appears_whole(root: Root) -> None:
    with root.writer("big") as stream:
        for _ in range(40):
            stream.write(b"x" * 2**20)
    assert stream.num_bytes == 40 * 2**20 == root.size("big")
    assert stream.sha256 == hashlib.sha256(b"x" * 40 * 2**20).hexdigest()


def test_writer_that_fails_leaves_nothing(root: Root) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), root.writer("half") as stream:  # noqa: PT012
        stream.write(b"x" * 100)
        raise RuntimeError("on purpose")
    assert not root.exists("half")
    assert root.list("") == []


def test_list_and_fingerprint(root: Root) -> None:
    for path in ("runs/a/1", "runs/a/2", "runs/b/1"):
        root.put(path, path.encode())
    assert root.list("runs/a") == ["runs/a/1", "runs/a/2"]
    assert root.list("nothing") == []
    before = root.fingerprint("runs/a/1")
    root.put("runs/a/1", b"longer than it was")
    assert root.fingerprint("runs/a/1") != before


def test_open_reads_and_seeks(root: Root) -> None:
    content = bytes(i % 251 for i in range(100_000))
    root.put("object", content)
    with root.open("object") as file:
        assert file.read(10) == content[:10]
        file.seek(-5, 2)
        assert file.read() == content[-5:]
        file.seek(50_000)
        assert file.read(7) == content[50_000:50_007]


def test_absolute_addresses_open_from_any_root(root: Root, tmp_path: Path) -> None:
    root.put("x/y", b"content")
    assert root.within(root.address("x/y")) == "x/y"
    assert root.within("/some/where") == "/some/where"
    other = Root(str(tmp_path / "elsewhere"), root.options)
    assert other.get(root.address("x/y")) == b"content"
    assert other.list(root.address("x")) == [root.address("x/y")]


def test_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(ConfigError, match="ftp://host"):
        Root("ftp://host/x").get("y")


def test_unreachable_store_says_so() -> None:
    options = {"endpoint": "http://127.0.0.1:9", "region": "x", "access_key_id": "a", "secret_access_key": "b"}
    root = Root("s3://lake/x", tuple(sorted((options | {"allow_http": "true"}).items())))
    with pytest.raises(StorageError, match=r"s3://lake/x/y.*check address"):
        root.get("y")


def test_no_space_names_the_file_and_what_is_free() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("/dev/full is not here")
    from dataengine.storage.local import _faults

    with (
        pytest.raises(StorageError, match=r"no space left \(.* MiB free\); make room"),
        _faults(full),
        full.open("wb") as f,
    ):
        f.write(b"x" * 10_000)


class _LostReplies:
    """Answers a put with a fault: before it is applied, after, or after somebody else's."""

    def __init__(self, put: Callable[..., object], when: str) -> None:
        self._put, self._when, self._calls = put, when, 0

    def __call__(self, store: object, path: str, content: bytes, **options: object) -> object:
        self._calls += 1
        if self._calls > 1:
            return self._put(store, path, content, **options)
        if self._when == "after":
            self._put(store, path, content, **options)
        if self._when == "lost the race":
            self._put(store, path, b"theirs", **options)
        raise obstore.exceptions.GenericError("the reply was lost")


@pytest.mark.parametrize(("when", "held"), [("before", b"mine"), ("after", b"mine"), ("lost the race", b"theirs")])
def test_unclear_answer_to_create_is_settled_by_reading_back(
    s3_server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, held: bytes
) -> None:
    root = Root(f"s3://lake/{tmp_path.name}", tuple(sorted(s3_server.items())))
    monkeypatch.setattr(obstore, "put", _LostReplies(obstore.put, when))
    assert root.create("commit", b"mine") == held
    assert root.get("commit") == held

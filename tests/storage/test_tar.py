"""Headers equal Python's tarfile; the walk reads what tarfile and GNU tar write, and refuses hostile tars."""

from __future__ import annotations

import io
import pickle
import tarfile
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataengine.storage import tar
from dataengine.storage.hashing import HashingWriter

NAMES = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=100)


def archive(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT, **fields: object) -> bytes:
    """A tar of `members` as Python's tarfile writes it; `fields` are set on every TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as writer:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            writer.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def walked(content: bytes) -> list[tuple[str, bytes]]:
    members = tar.walk(io.BytesIO(content), "x.tar")
    return [(member.name, content[member.offset : member.offset + member.nbytes]) for member in members]


def written(members: list[tuple[str, bytes]]) -> bytes:
    return appended(members)[0] + tar.END


def appended(members: list[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    """Bytes of `members`, and the offsets that were told."""
    buffer = io.BytesIO()
    with HashingWriter(nullcontext(buffer)) as writer:
        offsets = [tar.append(writer, name, content) for name, content in members]
    return buffer.getvalue(), offsets


def refusal(content: bytes) -> tar.TarFault:
    with pytest.raises(tar.TarFault) as caught:
        walked(content)
    return caught.value


@given(NAMES, st.integers(0, tar.MAX_MEMBER_BYTES - 1))
def test_header_equals_tarfile(name: str, nbytes: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = nbytes
    assert tar.header(name, nbytes) == info.tobuf(tarfile.USTAR_FORMAT)


@given(st.lists(st.tuples(st.from_regex(r"[a-z0-9_/]{0,90}[a-z]\.[a-z]{3}", fullmatch=True), st.binary(max_size=1100))))
def test_walk_reads_what_is_written(members: list[tuple[str, bytes]]) -> None:
    safe = [(name.lstrip("/"), content) for name, content in members]
    assert walked(written(safe)) == safe


def test_append_writes_as_tarfile_and_tells_where() -> None:
    members = [(f"{nbytes}.bin", bytes([nbytes % 251]) * nbytes) for nbytes in (0, 1, 511, 512, 513, 3 * 2**20)]
    content, offsets = appended(members)
    assert archive(members)[: len(content)] == content
    assert len(content) % tar.BLOCK == 0
    for offset, (_, member) in zip(offsets, members, strict=True):
        assert content[offset : offset + len(member)] == member


@pytest.mark.parametrize("name", ["", "é.jpg", "a" * 101, "a\0b"])
def test_header_refuses_names(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 100 ASCII"):
        tar.header(name, 1)


@pytest.mark.parametrize("nbytes", [-1, 8**11])
def test_header_refuses_sizes(nbytes: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        tar.header("a.jpg", nbytes)


@pytest.mark.parametrize("nbytes", [0, 1, 511, 512, 513])
def test_padding_fills_a_block(nbytes: int) -> None:
    assert (nbytes + len(tar.padding(nbytes))) % tar.BLOCK == 0
    assert len(tar.padding(nbytes)) < tar.BLOCK


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_walk_reads_every_dialect(form: int) -> None:
    members = [
        ("a/b.jpg", b"1" * 700),
        ("./c.txt", b""),
        ("d" * 60 + "/" + "e" * 90 + ".json", b"{}"),
        ("é.txt", b"x"),
    ]
    assert walked(archive(members, form)) == members


def test_walk_reads_names_over_256_bytes() -> None:
    members = [("f" * 300 + ".jpg", b"1"), ("short.jpg", b"2")]
    assert walked(archive(members, tarfile.GNU_FORMAT)) == members
    assert walked(archive(members, tarfile.PAX_FORMAT)) == members


def test_walk_reads_pax_times_and_comments() -> None:
    content = archive([("a.jpg", b"12")], tarfile.PAX_FORMAT, mtime=1.5, pax_headers={"comment": "é = \n x"})
    assert walked(content) == [("a.jpg", b"12")]


def extended(kind: bytes, content: bytes) -> bytes:
    """A header of another type than a plain file, such as a pax header, with its content."""
    block = bytearray(tar.header("extended", len(content)))
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:]))
    return bytes(block) + content + tar.padding(len(content))


def test_pax_size_and_path_override_the_header() -> None:
    content = extended(b"x", b"12 size=600\n14 path=b.txt\n") + tar.header("a.jpg", 1) + b"1" * 1024
    assert walked(content + written([("c.txt", b"2")])) == [("b.txt", b"1" * 600), ("c.txt", b"2")]


def test_global_pax_headers_may_comment_but_not_rename() -> None:
    rest = written([("a.jpg", b"1")])
    assert walked(extended(b"g", b"15 comment=abc\n") + rest) == [("a.jpg", b"1")]
    assert "global pax header" in refusal(extended(b"g", b"14 path=b.txt\n") + rest).fault


def test_walk_skips_folders() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        writer.addfile(folder)
        writer.addfile(tarfile.TarInfo("folder/a.jpg"))
    assert walked(buffer.getvalue()) == [("folder/a.jpg", b"")]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_walk_refuses_what_is_no_plain_file(kind: bytes) -> None:
    fault = refusal(archive([("a.jpg", b"")], tarfile.GNU_FORMAT, type=kind, linkname="/etc/passwd"))
    assert "wanted a regular file" in fault.fault


def test_walk_refuses_pax_sparse() -> None:
    content = archive([("a.jpg", b"1")], tarfile.PAX_FORMAT, pax_headers={"GNU.sparse.major": "1"})
    assert refusal(content).fault == "sparse member"


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "a/.."])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_walk_refuses_unsafe_names(name: str, form: int) -> None:
    assert "unsafe name" in refusal(archive([(name, b"1")], form)).fault


def test_walk_refuses_unsafe_pax_names() -> None:
    for path in ("../" + "a" * 120, "/" + "a" * 120, "a\0b"):
        content = archive([("a.jpg", b"1")], tarfile.PAX_FORMAT, pax_headers={"path": path})
        assert "unsafe name" in refusal(content).fault


def test_dots_within_a_name_are_safe() -> None:
    assert walked(written([("a..b.jpg", b"1")])) == [("a..b.jpg", b"1")]


def test_every_flipped_header_bit_is_found() -> None:
    content = written([("a.jpg", b"1")])
    for position in range(tar.BLOCK):
        broken = bytearray(content)
        broken[position] ^= 4
        assert refusal(bytes(broken)).offset in (0, len(content))


@pytest.mark.parametrize("nbytes", [*range(0, 2560, 61), 512, 1111, 1112, 1536, 2048, 2049, 2560, 2561, 3071])
def test_every_truncation_is_found_after_the_sound_members(nbytes: int) -> None:
    content = written([("a.jpg", b"1" * 600), ("b.txt", b"2")])[:nbytes]
    walk = tar.walk(io.BytesIO(content), "x.tar")
    sound = (nbytes >= 512 + 600) + (nbytes >= 2048 + 1)
    assert [next(walk).name for _ in range(sound)] == ["a.jpg", "b.txt"][:sound]
    with pytest.raises(tar.TarFault, match="tar ends") as caught:
        next(walk)
    assert caught.value.offset == nbytes


def test_empty_file_is_no_tar_and_an_empty_tar_is() -> None:
    assert walked(tar.END) == []
    assert refusal(b"").fault == "tar ends without end-of-archive block"


def test_a_huge_extended_header_is_not_read() -> None:
    assert "extended header of" in refusal(extended(b"L", bytes(tar.MAX_EXTENSION_BYTES + 1)) + tar.END).fault


def test_many_pax_records_take_linear_time() -> None:
    content = extended(b"x", b"6 a=b\n" * (tar.MAX_EXTENSION_BYTES // 6)) + written([("a.jpg", b"1")])
    assert walked(content) == [("a.jpg", b"1")]


@pytest.mark.parametrize(
    "records", [b"5 a=b\n", b"7 a=b\n", b"0 a=b\n", b"-6 a=b", b"a=b\n", b"9999999999999999999 a=b\n"]
)
def test_broken_pax_records_are_refused(records: bytes) -> None:
    assert refusal(extended(b"x", records) + written([("a.jpg", b"1")])).fault == "broken pax header"


@given(st.binary(min_size=1, max_size=3000))
def test_noise_is_a_fault(content: bytes) -> None:
    if content[:512] != bytes(512):
        assert refusal(content).where == "x.tar"


def test_a_fault_travels_between_processes() -> None:
    fault = refusal(b"")
    assert (
        str(pickle.loads(pickle.dumps(fault))) == str(fault) == "x.tar: tar ends without end-of-archive block at byte 0"
    )


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [("7.jpg", "7", "jpg"), ("a.b/7.src.JPG", "a.b/7", "src.jpg"), ("7", "7", ""), (".hidden", "", "hidden")],
)
def test_split_name(name: str, key: str, extension: str) -> None:
    assert tar.split_name(name) == (key, extension)


NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=100)


@given(st.lists(st.tuples(NAMES, st.integers(0, tar.MAX_MEMBER_BYTES - 1)), max_size=20))
def test_many_headers_are_each_one_of_header(members: list[tuple[str, int]]) -> None:
    names, sizes = [name for name, _ in members], [nbytes for _, nbytes in members]
    found = tar.headers(np.array(names, np.bytes_), np.array(sizes, np.int64))
    assert [block.tobytes() for block in found] == [tar.header(name, nbytes) for name, nbytes in members]


@pytest.mark.parametrize(("name", "nbytes"), [(b"", 1), (b"a" * 101, 1), (b"\xc3\xbc", 1), (b"a", -1), (b"a", 8**11)])
def test_headers_refuse_what_header_refuses(name: bytes, nbytes: int) -> None:
    with pytest.raises(ValueError, match="a member"):
        tar.headers(np.array([b"fine", name]), np.array([1, nbytes]))

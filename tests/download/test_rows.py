"""What a row of SAMPLE says, for every worth of an expected hash and every list that forbids."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from dataengine.download.blocklist import Blocklist, parse_blocklist
from dataengine.download.decoder import Decoded
from dataengine.download.fetch import Fetched
from dataengine.download.image import StoredImage
from dataengine.download.rows import Integrity, algorithms_for, failed, judged, unanswered, unfetched

CONTENT = b"bytes of a picture"
DIGESTS = {name: hashlib.new(name, CONTENT).hexdigest() for name in ("md5", "sha1", "sha256")}
IMAGE = StoredImage(CONTENT, "jpg", 4, 3, 8, 6, "0" * 16, "0" * 32)
GOOD = Decoded(DIGESTS, IMAGE, None, None)


def _candidate(**change: Any) -> dict[str, Any]:
    return {
        "key": "0" * 32, "url": "http://a.example/1.jpg", "expected_hash": None, "fault": None, "detail": None,
    } | change  # fmt: skip


def _listed(*lines: str) -> Blocklist:
    blocklist = Blocklist()
    parse_blocklist(lines, "list", blocklist)
    return blocklist


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize(
    ("integrity", "is_equal", "reason"),
    [
        ("require", True, None),
        ("prefer", True, None),
        ("record", True, None),
        ("require", False, "hash_mismatch"),
        ("prefer", False, "hash_mismatch"),
        ("record", False, None),
    ],
)
def test_expected_hashes(algorithm: str, integrity: Integrity, is_equal: bool, reason: str | None) -> None:
    expected = DIGESTS[algorithm] if is_equal else "0" * len(DIGESTS[algorithm])
    row = judged(_candidate(expected_hash=expected), GOOD, Blocklist(), integrity)
    assert (row["reason"], row["hash_matches"], row["sha256"]) == (reason, is_equal, DIGESTS["sha256"])
    assert (row["status"], row["width"]) == (("ok", 4) if reason is None else ("failed", None))


def test_a_hash_that_must_be_there() -> None:
    missing = unfetched(_candidate(), Blocklist(), "require")
    assert missing is not None
    assert missing["reason"] == "no_expected_hash"
    assert unfetched(_candidate(), Blocklist(), "prefer") is None
    assert judged(_candidate(), GOOD, Blocklist(), "prefer")["hash_matches"] is None


def test_what_is_listed_is_neither_asked_for_nor_stored() -> None:
    row = unfetched(_candidate(url="http://x.a.example/1.jpg"), _listed("a.example"), "prefer")
    assert row is not None
    assert (row["reason"], row["detail"]) == ("blocklist", "domain a.example")
    for algorithm, digest in DIGESTS.items():
        row = judged(_candidate(), GOOD, _listed(digest), "record")
        assert (row["status"], row["reason"], row["detail"]) == ("failed", "blocklist", f"{algorithm} list")


def test_faults_of_the_input_come_first_and_keep_their_detail() -> None:
    row = unfetched(_candidate(fault="bad_row", detail="list.csv, line 7"), _listed("a.example"), "require")
    assert row is not None
    assert (row["reason"], row["detail"]) == ("bad_row", "list.csv, line 7")


def test_faults_of_the_bytes() -> None:
    row = judged(_candidate(), Decoded(DIGESTS, None, "decoder_crash", "SIGSEGV" * 100), Blocklist(), "prefer")
    assert (row["status"], row["reason"], len(row["detail"])) == ("failed", "decoder_crash", 300)


def test_only_reasons_of_the_closed_set() -> None:
    with pytest.raises(AssertionError, match="closed set"):
        failed("0" * 32, "something_new")


def test_a_hash_that_is_none_is_a_fault_and_no_algorithm() -> None:
    assert algorithms_for([_candidate(fault="bad_hash", expected_hash="abc")], Blocklist()) == ("sha256",)


@pytest.mark.parametrize(("reason", "is_opt_out"), [("robots", True), ("opt_out", True), ("blocklist", False)])
def test_only_what_strangers_say_is_an_opt_out(reason: str, is_opt_out: bool) -> None:
    evidence = "what forbids it"
    fetched = Fetched(None, reason, None, None, None, evidence, None, 1, "a.example", 0.1, 0)
    row = unanswered(_candidate(), fetched)
    assert (row["reason"], row["detail"]) == (reason, evidence)
    assert row["opt_out"] == (evidence if is_opt_out else None)


def test_no_more_hashes_than_needed() -> None:
    assert algorithms_for([_candidate()], Blocklist()) == ("sha256",)
    rows = [_candidate(expected_hash=DIGESTS["md5"]), _candidate()]
    assert algorithms_for(rows, _listed(DIGESTS["sha1"])) == ("md5", "sha1", "sha256")

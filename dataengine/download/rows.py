"""The row of SAMPLE that a candidate gets: what was fetched, what its bytes are, or why there are none.

In go a candidate, what the network said and what the decoder found; out comes a dict with every column. What is
decided here: what an expected hash is worth, and that no reason outside the closed set reaches a table. Nothing here
fetches or decodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dataengine.download.blocklist import HASHES, Blocklist
from dataengine.download.outcomes import is_known
from dataengine.schemas import SAMPLE

if TYPE_CHECKING:
    from dataengine.download.decoder import Decoded
    from dataengine.download.fetch import Fetched
    from dataengine.download.image import StoredImage

Row = dict[str, Any]
Integrity = Literal["require", "prefer", "record"]

_NOTHING: Row = dict.fromkeys(SAMPLE.arrow.names)
_MAX_DETAIL_CHARS = 300
_OF_FETCH = ("http_status", "final_url", "content_type", "fetched_at", "num_attempts")
_OF_IMAGE = ("format", "width", "height", "original_width", "original_height", "xxh3", "pixel_hash")


def failed(key: str, reason: str, detail: str | None = None) -> Row:
    """The row of a candidate that gave no image."""
    assert is_known(reason), f"{reason!r} is not in the closed set of reasons"
    return _NOTHING | {"key": key, "status": "failed", "num_attempts": 0} | _why(reason, detail)


def unfetched(candidate: Row, blocklist: Blocklist, integrity: Integrity) -> Row | None:
    """The row of a candidate that is not worth asking for, known from the input alone; None: ask."""
    key = candidate["key"]
    if candidate["fault"] is not None:
        return failed(key, candidate["fault"], candidate["detail"])
    if integrity == "require" and candidate["expected_hash"] is None:
        return failed(key, "no_expected_hash", "download.integrity is require")
    entry = None if candidate["url"] is None else blocklist.forbids_url(candidate["url"])
    return None if entry is None else failed(key, "blocklist", entry)


def unanswered(candidate: Row, fetched: Fetched) -> Row:
    """The row of a candidate whose URL gave no body."""
    assert fetched.reason is not None
    row = failed(candidate["key"], fetched.reason, fetched.evidence) | of_fetch(fetched)
    is_asked_for = fetched.reason in ("robots", "opt_out")  # by those whose picture it is, not by our lists
    return row | {"opt_out": fetched.evidence if is_asked_for else None}


def judged(candidate: Row, decoded: Decoded, blocklist: Blocklist, integrity: Integrity) -> Row:
    """The row of a candidate whose bytes are there; only an `ok` one may be stored."""
    expected = candidate["expected_hash"]
    matches = None if expected is None else decoded.digests[HASHES[len(expected)]] == expected
    row = _NOTHING | {"key": candidate["key"], "num_attempts": 0, "hash_matches": matches}
    row["sha256"] = decoded.digests["sha256"]
    listed = blocklist.forbids_bytes(decoded.digests)
    if listed is not None:
        return row | {"status": "failed"} | _why("blocklist", listed)
    if matches is False and integrity != "record":
        return row | {"status": "failed"} | _why("hash_mismatch", f"wanted {expected}")
    if decoded.image is None:
        assert decoded.reason is not None
        return row | {"status": "failed"} | _why(decoded.reason, decoded.detail)
    return row | {"status": "ok"} | _of_image(decoded.image)


def algorithms_for(candidates: list[Row], blocklist: Blocklist) -> tuple[str, ...]:
    """The hashes that must be taken of every image: SHA-256, those listed, and those expected."""
    hashes = (row["expected_hash"] for row in candidates if row["fault"] is None)  # a bad one is a fault
    expected = {HASHES[len(text)] for text in hashes if text is not None}
    return tuple(sorted({"sha256"} | blocklist.algorithms | expected))


def _why(reason: str, detail: str | None) -> Row:
    assert is_known(reason), f"{reason!r} is not in the closed set of reasons"
    return {"reason": reason, "detail": None if detail is None else detail[:_MAX_DETAIL_CHARS]}


def of_fetch(fetched: Fetched) -> Row:
    """The evidence of the fetch, by column."""
    return {name: getattr(fetched, name) for name in _OF_FETCH}


def _of_image(image: StoredImage) -> Row:
    return {name: getattr(image, name) for name in _OF_IMAGE}

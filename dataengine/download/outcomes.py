"""The outcomes of a candidate: a closed set of reasons why it gave no image, and which of them may pass by themselves.

Every row of SAMPLE is `ok` or has one of these reasons; a word that is not here never reaches a table.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from dataengine.errors import ConfigError

TRANSIENT = frozenset({"dns", "connect", "reset", "timeout", "too_slow", "truncated", "robots_unreachable"})
"""Faults of the network or of an overloaded server, besides http_408, http_429 and http_5xx."""

REASONS = TRANSIENT | frozenset(
    {
        # of the input
        *(
            "bad_row",
            "bad_url",
            "bad_hash",
            "bad_json",
            "missing_image",
            "missing_member",
            "duplicate_member",
            "corrupt_tar",
        ),
        *("corrupt_parquet", "not_downloaded"),
        # of the address and the way there
        *("blocked_address", "blocked_port", "tls", "redirects", "protocol"),
        # of consent and safety
        *("robots", "opt_out", "blocklist"),
        # of the bytes
        *("too_large", "hash_mismatch", "no_expected_hash", "not_image", "bad_image", "too_many_pixels"),
        *("decoder_crash", "decoder_timeout", "decoder_memory"),
    }
)
"""Every reason but those of HTTP, which are `http_` and the three digits of the status."""

_GROUPS = ("4xx", "5xx", "transient")


def is_http(reason: str) -> bool:
    """Whether `reason` is `http_` and a status of three digits."""
    return len(reason) == 8 and reason.startswith("http_") and reason[5:].isdecimal()


def is_known(reason: str) -> bool:
    """Whether `reason` is in the closed set."""
    return reason in REASONS or is_http(reason)


def is_transient(reason: str) -> bool:
    """Whether the same request may succeed later: faults of the network, 408, 429 and 5xx."""
    return reason in TRANSIENT or reason in ("http_408", "http_429") or reason.startswith("http_5")


def parse_reasons(text: str) -> tuple[str, ...]:
    """The reasons and groups in a comma-separated list: any reason, `4xx`, `5xx` or `transient`.

    Raises ConfigError for a word that is none.
    """
    words = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    for word in words or ("",):
        if word not in _GROUPS and not is_known(word):
            known = (*sorted(REASONS), *_GROUPS)
            close = difflib.get_close_matches(word, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"no reason {word!r}{hint}; wanted some of: {', '.join(known)}, http_404 and the like")
    return words


def matching(reasons: Iterable[str], wanted: Sequence[str]) -> frozenset[str]:
    """Those of `reasons` that the words of `parse_reasons` name."""
    return frozenset(reason for reason in reasons if _matches(reason, wanted))


def _matches(reason: str, wanted: Sequence[str]) -> bool:
    group = f"{reason[5]}xx" if is_http(reason) else ""
    return reason in wanted or group in wanted or ("transient" in wanted and is_transient(reason))

"""Lists of what is to be taken down: the lines of a TXT or CSV file in, entries out, every bad line named.

TXT holds one entry a line, told by its form or by its kind before it (`key 0123...`); lines that begin with # say
nothing. CSV and TSV have a header with some of the columns url, domain, key, sha256 and phash; each cell is an entry.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from dataengine.errors import InputError
from dataengine.select.blocklist import Listed, plain_url

KINDS = ("url", "domain", "key", "sha256", "phash")
_FAULTS_SHOWN = 10
_FORMS = (
    ("url", re.compile(r"https?://\S+", re.IGNORECASE)),
    ("sha256", re.compile("[0-9a-f]{64}", re.IGNORECASE)),
    ("key", re.compile("[0-9a-f]{32}", re.IGNORECASE)),
    ("phash", re.compile("[0-9a-f]{16}", re.IGNORECASE)),
)
_HASH = re.compile("[0-9a-f]{12,}")  # one cut short would pass for a domain, name nobody, and its sample would stay
_SEPARATORS = {"csv": ",", "tsv": "\t"}


@dataclass(frozen=True)
class Entry:
    """One thing to take down."""

    kind: str
    value: str
    """As samples are compared with it: hashes, keys and domains in lower case, URLs as given."""

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"

    @property
    def plain(self) -> str:
        """What two entries that mean the same have in common."""
        return plain_url(self.value) if self.kind == "url" else self.value.removeprefix("*.").removesuffix(".")


def parse_list(content: bytes, name: str) -> list[Entry]:
    """The entries of the file `name` that holds `content`, each once, in order.

    Raises InputError when it holds none, when it is not UTF-8, when a CSV has no column of `KINDS`, or when a line is
    no entry; the message names the first such lines.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 text ({error}); save the list as UTF-8 TXT or CSV") from error
    separator = _SEPARATORS.get(name.rpartition(".")[2].lower())
    lines = _text_lines(text) if separator is None else _table_lines(text, separator, name)
    entries: dict[Entry, None] = {}
    faults = []
    for number, kind, value in lines:
        try:
            entries[_entry(kind, value)] = None
        except ValueError as error:
            faults.append(f"line {number}: got {value[:80]!r}, {error}")
    if faults:
        shown = "\n  ".join(faults[:_FAULTS_SHOWN])
        more = f"\n  and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise InputError(f"{name}: {len(faults)} entries cannot be read; nothing was taken down\n  {shown}{more}")
    if not entries:
        raise InputError(f"{name}: holds no entry; wanted one a line: a URL, a domain, a key, a SHA-256 or a phash")
    return list(entries)


def _text_lines(text: str) -> Iterator[tuple[int, str | None, str]]:
    """(line, kind if it is told, value) of every line that says something."""
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        kind, _, value = entry.partition(" ")
        yield (number, kind, value.strip()) if kind in KINDS and value else (number, None, entry)


def _table_lines(text: str, separator: str, name: str) -> Iterator[tuple[int, str | None, str]]:
    rows = csv.DictReader(io.StringIO(text), delimiter=separator)
    named = {field: field.strip().lower() for field in rows.fieldnames or []}
    wanted = {field: kind for field, kind in named.items() if kind in KINDS}
    if not wanted:
        raise InputError(
            f"{name}: has the columns {list(named.values())}; wanted a header with some of {', '.join(KINDS)}"
        )
    try:
        for row in rows:
            for field, kind in wanted.items():
                if value := (row[field] or "").strip():
                    yield rows.line_num, kind, value
    except csv.Error as error:
        raise InputError(f"{name}, line {rows.line_num}: not CSV: {error}") from error


def _entry(kind: str | None, value: str) -> Entry:
    kind = kind or next((name for name, form in _FORMS if form.fullmatch(value)), "domain")
    if any(character.isspace() for character in value):
        raise ValueError(f"wanted one {kind} without white space")
    try:
        Listed().add(kind, value)
    except ValueError as error:
        forms = "a URL, a domain, a key (32 hex characters), a SHA-256 (64) or a phash (16)"
        raise ValueError(f"wanted {forms}" if kind == "domain" else str(error)) from error
    if kind == "domain" and _HASH.fullmatch(value.lower()):
        what = "a SHA-1" if len(value) == 40 else f"a key or hash of {len(value)} characters"
        raise ValueError(f"which looks like {what}; wanted a key (32 hex characters), a SHA-256 (64) or a phash (16)")
    return Entry(kind, value if kind == "url" else value.lower())

"""Pages of the sample web on disk: an index that says how each URL answers, and the bodies as plain files. It
knows nothing of pictures, sources or expectations; the server reads what is written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import quote, urlsplit

HOSTS = ("photos.test", "cdn.test", "shop.test", "blog.test", "faulty.test")
CLOSED_HOST = "closed.test"
"""Its address refuses every connection."""
UNKNOWN_HOST = "nowhere.test"
"""It has no address."""

Manner: TypeAlias = Literal["whole", "later", "cut", "drip", "endless", "reset"]


@dataclass(frozen=True)
class Page:
    """How one URL answers.

    ``manner``: ``whole`` sends status, headers and body; ``later`` sends status and headers to the first
    request and 200 with the body from then on; ``cut`` declares the whole body and sends half of it; ``drip``
    sends one byte every half second; ``endless`` follows the body with zeros for ever; ``reset`` resets the
    connection.
    """

    host: str
    target: str
    manner: Manner = "whole"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Where the body lies, relative to the web's directory."""
        return Path("pages") / self.host / quote(self.target.lstrip("/"), safe="/")


Served: TypeAlias = tuple[Page, bytes]


def page_at(url: str, manner: Manner = "whole", status: int = 200, headers: dict[str, str] | None = None) -> Page:
    """The page that answers at ``url``."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return Page(str(parts.hostname), target, manner, status, headers or {})


def write_body(directory: Path, page: Page, body: bytes) -> None:
    """Stores the body of ``page``."""
    file = directory / page.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(body)


def write_index(directory: Path, pages: Iterable[Page]) -> None:
    """Stores how every page answers."""
    (directory / "pages.json").write_text(json.dumps([asdict(page) for page in pages], indent=0) + "\n")


def read_index(directory: Path) -> dict[tuple[str, str], Page]:
    """Every page by host and target."""
    pages = [Page(**fields) for fields in json.loads((directory / "pages.json").read_text())]
    return {(page.host, page.target): page for page in pages}

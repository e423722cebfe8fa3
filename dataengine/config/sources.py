"""Sources: where candidates come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dataengine.config.base import EXECUTION, Config

SourceName = Annotated[str, Field(pattern=r"^(?!(holdout|ledger|samples|stats)\Z)[a-z][a-z0-9_-]{0,39}\Z")]
"""Names a folder of the dataset and its shards, so: lower case, no dots, and none of the folders that tables have."""


CaptionName = Annotated[str, Field(pattern=r"^(?!caption(_\d+)?\Z|merged_\d+\Z)[a-z][a-z0-9_]{0,39}\Z")]
"""Names a score column; `caption`, `caption_2`, `merged_1` ... are given by the engine."""

FilePattern = Annotated[str, Field(min_length=1, pattern=r"^[^\0]*\Z")]


class TableSource(Config):
    """A table of URLs and captions: Parquet, CSV, TSV, JSONL or TXT (one URL a line), also .gz or .zst."""

    kind: Literal["table"]
    paths: Annotated[tuple[FilePattern, ...], Field(min_length=1, json_schema_extra=EXECUTION)]
    """Files, or globs whose `*` stays within a folder; `{root}` stands for the run's root. Contents bear identity."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "txt"] = "auto"
    """`auto` goes by the file name."""
    url_column: str = "url"
    """Column of the URL."""
    caption_column: str | None = "caption"
    """Column of the primary caption; null: there is none."""
    caption_columns: dict[CaptionName, str] = {}
    """Further captions: name → column."""
    sha256_column: str | None = None
    """What the fetched bytes must hash to (null: not checked)."""
    passthrough: tuple[str, ...] = ()
    """Columns carried along unchanged, as text: licence, language ..."""
    license: str = ""
    """Said in the data card."""


class WebDatasetSource(Config):
    """Existing WebDataset tars, indexed and read in place."""

    kind: Literal["webdataset"]
    paths: Annotated[tuple[FilePattern, ...], Field(min_length=1, json_schema_extra=EXECUTION)]
    """Tars, globs whose `*` stays within a folder, or brace ranges (`images-{000000..000099}.tar`)."""
    caption_member: str | None = "txt"
    """Extension of the member that holds the primary caption."""
    caption_field: str | None = None
    """Instead: field of the json member."""
    caption_fields: dict[CaptionName, str] = {}
    """Further captions: name → field of the json member."""
    url_field: str | None = "url"
    """Field of the json member that holds the image's URL; null: there is none."""
    passthrough: tuple[str, ...] = ()
    """Fields of the json member carried along, as text."""
    license: str = ""
    """Said in the data card."""


Source = Annotated[TableSource | WebDatasetSource, Field(discriminator="kind")]

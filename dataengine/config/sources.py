"""Sources: where candidates come from."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from dataengine.config.base import EXECUTION, Config, FilePattern

SourceName = Annotated[str, Field(pattern=r"^(?!(holdout|ledger|samples|stats)\Z)[a-z][a-z0-9_-]{0,39}\Z")]
"""Names a folder of the dataset and its shards, so: lower case, no dots, and none of the folders that tables have."""


CaptionName = Annotated[str, Field(pattern=r"^(?!caption(_\d+)?\Z|merged_\d+\Z)[a-z][a-z0-9_]{0,39}\Z")]
"""Names a score column; `caption`, `caption_2`, `merged_1` ... are given by the engine."""


MemberExtension = Annotated[str, Field(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*\Z", max_length=60)]
"""What comes after the first dot of a member's name, in lower case."""

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"})
"""Extensions of the members that may be a sample's image."""


class TableSource(Config):
    """A table of URLs and captions: Parquet; or CSV, TSV, JSON (an array of objects), JSONL and TXT (one URL a line),
    these also .gz or .zst."""

    kind: Literal["table"]
    paths: Annotated[tuple[FilePattern, ...], Field(min_length=1, json_schema_extra=EXECUTION)]
    """Files, globs whose `*` stays within a folder, or brace ranges and lists; `{root}` stands for the run's root.
    Contents bear identity."""
    format: Literal["auto", "parquet", "csv", "tsv", "json", "jsonl", "txt"] = "auto"
    """`auto` goes by the file name."""
    url_column: str = "url"
    """Column of the URL."""
    caption_column: str | None = "caption"
    """Column of the primary caption; null: there is none."""
    caption_columns: dict[CaptionName, str] = {}
    """Further captions: name → column."""
    hash_column: str | None = None
    """What the fetched bytes must hash to: MD5, SHA-1 or SHA-256 in hex, told by its length (null: not known)."""
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
    extra_members: tuple[MemberExtension, ...] = ()
    """Extensions of further members that every sample has and that are carried into the published tars as they are:
    `src.jpg` of an image-to-image pair, `npy` of latents. A sample without one is dropped as `missing_member`."""
    license: str = ""
    """Said in the data card."""

    @field_validator("extra_members")
    @classmethod
    def _are_extra(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if taken := sorted({*IMAGE_EXTENSIONS, "txt", "json"}.intersection(names)):
            raise ValueError(f"{', '.join(taken)}: names an image, txt or json member; every sample has those already")
        if len(set(names)) < len(names):
            raise ValueError("an extension is named twice")
        return names


class Img2DatasetSource(Config):
    """What img2dataset left in its WebDataset format, read in place: `00000.tar` with `00000.parquet` beside it.

    The tars give the images; the rows that the Parquet names and the tar lacks are accounted for, with their URL.
    """

    kind: Literal["img2dataset"]
    paths: Annotated[tuple[FilePattern, ...], Field(min_length=1, json_schema_extra=EXECUTION)]
    """Its tars, globs whose `*` stays within a folder (`output/*.tar`), or brace ranges. Contents bear identity."""
    caption_fields: dict[CaptionName, str] = {}
    """Further captions: name → column that img2dataset was told to save."""
    passthrough: tuple[str, ...] = ()
    """Columns carried along, as text: those it was told to save, `key`, `original_width`, `exif` ..."""
    license: str = ""
    """Said in the data card."""


class ImageParquetSource(Config):
    """Parquet that holds the images themselves, as Hugging Face `datasets` writes it.

    Images that stand in the file as they are (no compression, no dictionary: `datasets` from 4.6 on) are read in
    place; others are copied once into the run.
    """

    kind: Literal["image_parquet"]
    paths: Annotated[tuple[FilePattern, ...], Field(min_length=1, json_schema_extra=EXECUTION)]
    """Files, globs whose `*` stays within a folder, or brace ranges. Contents bear identity, and so do file names."""
    image_column: str = "image"
    """Column of the image: bytes, or a struct with a field `bytes`."""
    caption_column: str | None = "caption"
    """Column of the primary caption; null: there is none."""
    caption_columns: dict[CaptionName, str] = {}
    """Further captions: name → column."""
    url_column: str | None = None
    """Column of the image's URL; null: there is none."""
    passthrough: tuple[str, ...] = ()
    """Columns carried along, as text: licence, language ..."""
    license: str = ""
    """Said in the data card."""


Source = Annotated[TableSource | WebDatasetSource | Img2DatasetSource | ImageParquetSource, Field(discriminator="kind")]

SOURCE_KINDS = frozenset(
    kind for model in get_args(get_args(Source)[0]) for kind in get_args(model.model_fields["kind"].annotation)
)
"""What `kind` may say."""

"""The tables that stages hand to each other: one explicit Arrow schema each, with a doc per column.

A schema is a contract: tables are checked against it when written and when read, never inferred and never widened.
Floating-point columns are null where there is no value; NaN is refused, because engines disagree on how it compares.
SCORE and MANIFEST also hold one column per configured score, so they are functions of those names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dataengine.errors import SchemaError

CAPTIONS = pa.map_(pa.string(), pa.string())
EXTRA_MEMBERS = pa.map_(pa.string(), pa.struct([("offset", pa.int64()), ("nbytes", pa.int64()), ("xxh3", pa.string())]))
"""Extension → where the member's content lies in its tar, and the XXH3-64 of it, 16 hex characters."""


def column(name: str, kind: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    """A documented column; columns are required unless `nullable`."""
    return pa.field(name, kind, nullable=nullable, metadata={"doc": doc})


@dataclass(frozen=True)
class TableSchema:
    """A named Arrow schema, and the columns its rows are sorted by."""

    name: str
    arrow: pa.Schema
    sorted_by: tuple[str, ...] = ("key",)

    def table(self, columns: Mapping[str, Sequence[object] | pa.Array | pa.ChunkedArray]) -> pa.Table:
        """A checked table from one sequence or Arrow array per column, in schema order.

        Raises SchemaError when a column is missing, unknown, or does not fit its type.
        """
        unknown = set(columns) - set(self.arrow.names)
        missing = set(self.arrow.names) - set(columns)
        if unknown or missing:
            raise SchemaError(f"{self.name}: missing columns {sorted(missing)}, unknown columns {sorted(unknown)}")
        arrays = [self._array(field, columns[field.name]) for field in self.arrow]
        return self.check(pa.Table.from_arrays(arrays, schema=self.arrow))

    def _array(self, field: pa.Field, values: Sequence[object] | pa.Array | pa.ChunkedArray) -> pa.Array:
        try:
            if isinstance(values, pa.Array | pa.ChunkedArray):
                return values.cast(field.type)
            return pa.array(values, type=field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise SchemaError(f"{self.name}.{field.name}: wanted {field.type}, got {error}") from error

    def empty(self) -> pa.Table:
        """A table of no rows."""
        return self.arrow.empty_table()

    def check(self, table: pa.Table) -> pa.Table:
        """`table` itself, proven to fit.

        Raises SchemaError naming the first column whose type, nulls or NaN break the schema, or a broken sort order.
        """
        if table.schema.names != self.arrow.names:
            raise SchemaError(f"{self.name}: wanted columns {self.arrow.names}, got {table.schema.names}")
        for field in self.arrow:
            self._check_column(field, table.column(field.name))
        self._check_order(table)
        return table

    def _check_column(self, field: pa.Field, values: pa.ChunkedArray) -> None:
        if values.type != field.type:
            raise SchemaError(f"{self.name}.{field.name}: wanted {field.type}, got {values.type}")
        if values.null_count and not field.nullable:
            raise SchemaError(f"{self.name}.{field.name}: {values.null_count} nulls in a required column")
        if pa.types.is_floating(field.type) and pc.any(pc.is_nan(values)).as_py():
            raise SchemaError(f"{self.name}.{field.name}: NaN; write null and a status instead")

    def _check_order(self, table: pa.Table) -> None:
        if self.sorted_by != ("key",) or len(table) < 2:
            return
        keys = table.column("key")
        if not pc.all(pc.less(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py():
            raise SchemaError(f"{self.name}: keys must be unique and ascending")


LOCATION = [
    column("object", pa.string(), "object that holds the bytes: relative to the root, or a URL", nullable=True),
    column("offset", pa.int64(), "first byte within the object", nullable=True),
    column("nbytes", pa.int64(), "number of bytes", nullable=True),
]

CANDIDATE = TableSchema(
    "candidate",
    pa.schema(
        [
            column("key", pa.string(), "128-bit hash of (source, URL), 32 hex characters"),
            column("num_rows", pa.int32(), "input rows that named this URL"),
            column("source", pa.string(), "name of the source"),
            column("url", pa.string(), "URL as given; in place, the member's own metadata URL", nullable=True),
            column("caption", pa.string(), "primary caption; empty when the input has none"),
            column("captions", CAPTIONS, "named captions"),
            column("extra", CAPTIONS, "passthrough columns of the input, as text"),
            column(
                "expected_hash",
                pa.string(),
                "what the fetched bytes must hash to: MD5, SHA-1 or SHA-256, lower-case hex",
                nullable=True,
            ),
            column(
                "fault", pa.string(), "why this row cannot be downloaded at all, known from the input", nullable=True
            ),
            column("detail", pa.string(), "what of the input is at fault: file, line, member", nullable=True),
            *LOCATION,
        ]
    ),
)

MEMBER = TableSchema(
    "member",
    pa.schema(
        [
            column("key", pa.string(), "candidate's key, row order of CANDIDATE"),
            column("extra_members", EXTRA_MEMBERS, "extra members by extension, in the object that holds its image"),
        ]
    ),
)

SAMPLE = TableSchema(
    "sample",
    pa.schema(
        [
            column("key", pa.string(), "candidate's key; every candidate has a row"),
            column("status", pa.string(), "ok or failed"),
            column("reason", pa.string(), "why it failed", nullable=True),
            column("detail", pa.string(), "what was seen that made it fail, in words", nullable=True),
            column("http_status", pa.int32(), "code of the last response", nullable=True),
            column("final_url", pa.string(), "URL after redirects", nullable=True),
            column("content_type", pa.string(), "as the server declared it", nullable=True),
            column("opt_out", pa.string(), "the header or rule that forbids use, verbatim", nullable=True),
            column("fetched_at", pa.timestamp("ms", tz="UTC"), "time of the last response", nullable=True),
            column("num_attempts", pa.int32(), "requests made, redirects not counted"),
            column("sha256", pa.string(), "SHA-256 of the bytes as fetched", nullable=True),
            column("hash_matches", pa.bool_(), "whether they hash to what the input expects", nullable=True),
            column("xxh3", pa.string(), "XXH3-64 of the bytes as stored, 16 hex characters", nullable=True),
            column(
                "pixel_hash", pa.string(), "XXH3-128 of size and RGB pixels as stored, before encoding", nullable=True
            ),
            column("width", pa.int32(), "of the stored image, upright", nullable=True),
            column("height", pa.int32(), "of the stored image, upright", nullable=True),
            column("original_width", pa.int32(), "of the fetched image, upright", nullable=True),
            column("original_height", pa.int32(), "of the fetched image, upright", nullable=True),
            column("format", pa.string(), "of the stored image: jpg, png or webp; in place also gif", nullable=True),
            *LOCATION,
        ]
    ),
)

CLASS = TableSchema(
    "class",
    pa.schema(
        [
            column("key", pa.string(), "a sample's key"),
            column("kind", pa.string(), "image_bytes, pixels or caption_exact"),
            column("class_key", pa.string(), "smallest key among the exact copies"),
        ]
    ),
    sorted_by=("kind", "class_key", "key"),
)

EDGE = TableSchema(
    "edge",
    pa.schema(
        [
            column("left_key", pa.string(), "class representative; left_key < right_key"),
            column("right_key", pa.string(), "class representative"),
            column("kind", pa.string(), "caption_minhash or image_embedding"),
            column("similarity", pa.float32(), "exact Jaccard of shingles, or cosine of embeddings"),
            column("phash_distance", pa.int16(), "Hamming distance of the perceptual hashes, 0..64", nullable=True),
            column("against", pa.string(), "dataset that right_key lies in, when it is not this run", nullable=True),
        ]
    ),
    sorted_by=("left_key", "right_key"),
)

CELL = TableSchema(
    "cell",
    pa.schema([column("key", pa.string(), "a sample's key"), column("cell", pa.int32(), "nearest k-means cell")]),
)

SELECTION = TableSchema(
    "selection",
    pa.schema(
        [
            column("key", pa.string(), "candidate's key; every candidate has a row"),
            column("source", pa.string(), "name of the source"),
            column("verdict", pa.string(), "kept or dropped"),
            column("stage", pa.string(), "stage that decided: download, score or select", nullable=True),
            column("reason", pa.string(), "the first reason to drop the row", nullable=True),
            column(
                "rule_value",
                pa.string(),
                "the values the rule saw; of a failed download, what was seen in its stead",
                nullable=True,
            ),
            column("group_key", pa.string(), "smallest key of its group of duplicates", nullable=True),
            column("survivor_key", pa.string(), "the kept duplicate this row yields to", nullable=True),
            column("similarity", pa.float32(), "to the survivor", nullable=True),
            column("split", pa.string(), "train or holdout"),
            column("repeat", pa.int32(), "times the sample is drawn; 0 when dropped"),
            column("draw", pa.float64(), "uniform number in [0, 1) that decided sampling", nullable=True),
            column("merged_captions", CAPTIONS, "captions of dropped duplicates that this row carries on"),
        ]
    ),
)

SHARDS = TableSchema(
    "shards",
    pa.schema(
        [
            column("shard", pa.string(), "name of the tar without suffix, unique in the dataset"),
            column("path", pa.string(), "relative to the dataset version"),
            column("source", pa.string(), "the one source its samples come from"),
            column("format", pa.string(), "the one image format of its samples"),
            column("num_samples", pa.int32(), "samples in the tar"),
            column("nbytes", pa.int64(), "size of the tar"),
            column("sha256", pa.string(), "of the tar"),
            column("min_key", pa.string(), "first key"),
            column("max_key", pa.string(), "last key"),
        ]
    ),
    sorted_by=("shard",),
)

LEDGER = TableSchema(
    "ledger",
    pa.schema(
        [
            column("key", pa.string(), "candidate's key"),
            column("num_rows", pa.int32(), "input rows it stands for"),
            column("source", pa.string(), "name of the source"),
            column("url", pa.string(), "URL as given", nullable=True),
            column("state", pa.string(), "emitted or dropped"),
            column("stage", pa.string(), "stage that dropped it", nullable=True),
            column("reason", pa.string(), "why", nullable=True),
            column(
                "rule_value",
                pa.string(),
                "the values the rule saw; of a failed download, what was seen in its stead",
                nullable=True,
            ),
            column(
                "survivor_key",
                pa.string(),
                "the duplicate it yields to: emitted, or left out by balance or a take-down alone",
                nullable=True,
            ),
            column("similarity", pa.float32(), "to the survivor", nullable=True),
        ]
    ),
)

FUNNEL = TableSchema(
    "funnel",
    pa.schema(
        [
            column("source", pa.string(), "name of the source"),
            column("state", pa.string(), "emitted or dropped"),
            column("stage", pa.string(), "stage that dropped the rows", nullable=True),
            column("reason", pa.string(), "why", nullable=True),
            column("num_candidates", pa.int64(), "candidates in this state"),
            column("num_rows", pa.int64(), "input rows they stand for"),
        ]
    ),
    sorted_by=("source", "state", "stage", "reason"),
)

HISTOGRAM = TableSchema(
    "histogram",
    pa.schema(
        [
            column("source", pa.string(), "name of the source"),
            column("column", pa.string(), "name of the score"),
            column("low", pa.float64(), "inclusive lower edge of the bin"),
            column("high", pa.float64(), "exclusive upper edge of the bin"),
            column("num_scored", pa.int64(), "samples of the source in the bin"),
            column("num_emitted", pa.int64(), "of these, emitted"),
        ]
    ),
    sorted_by=("source", "column", "low"),
)

EVALUATION = TableSchema(
    "evaluation",
    pa.schema(
        [
            column("set", pa.string(), "evaluation set, as the config names it"),
            column("name", pa.string(), "image within the set: its path, or the number of its embedding"),
            column("phash", pa.string(), "perceptual hash; null where only embeddings are given", nullable=True),
        ]
    ),
    sorted_by=(),
)

MEASURES = [
    column("phash", pa.string(), "64-bit DCT perceptual hash, 16 hex characters", nullable=True),
    column(
        "sharpness", pa.float32(), "variance of the Laplacian of the grayscale image, 256 px short side", nullable=True
    ),
    column("entropy", pa.float32(), "Shannon entropy of the grayscale histogram, bits, 0..8", nullable=True),
    column("caption_chars", pa.int32(), "characters of the primary caption"),
    column("caption_tokens", pa.int32(), "tokens of the primary caption for the first scorer, ends not counted"),
    column("caption_truncated", pa.bool_(), "whether the text tower saw only the beginning"),
]


def score_schema(clip_scores: Iterable[str], heads: Iterable[str], *, measures: bool) -> TableSchema:
    """SCORE for one scorer: a float32 column per CLIP score (cosine) and per head, and the measures on request."""
    scores = [
        column(name, pa.float32(), "cosine of image and caption, not times 100", nullable=True) for name in clip_scores
    ]
    heads_ = [column(name, pa.float32(), "output of the head on the image embedding", nullable=True) for name in heads]
    fields = [
        column("key", pa.string(), "sample's key, row order of SAMPLE"),
        column(
            "score_status",
            pa.string(),
            "ok, missing (not downloaded), undecodable, decoder_memory, or not_finite (a score is no number)",
        ),
        *scores,
        *heads_,
        *(MEASURES if measures else []),
    ]
    return TableSchema("score", pa.schema(fields))


def manifest_schema(scores: Iterable[str]) -> TableSchema:
    """MANIFEST: one row per emitted sample, with a float32 column per configured score."""
    fields = [
        column("key", pa.string(), "sample's key, `__key__` in the tar"),
        column("shard", pa.string(), "name of its tar without suffix"),
        column("index_in_shard", pa.int32(), "position among the tar's samples"),
        column("source", pa.string(), "name of the source"),
        column("split", pa.string(), "train or holdout"),
        column("repeat", pa.int32(), "times the sample is drawn per epoch of the mixture"),
        *(
            column(f"{member}_{what}", pa.int64(), f"{what} of the {member} member's content in the tar, bytes")
            for member in ("image", "txt", "json")
            for what in ("offset", "nbytes")
        ),
        column("format", pa.string(), "jpg, png or webp"),
        column("width", pa.int32(), "pixels, upright"),
        column("height", pa.int32(), "pixels, upright"),
        column("bucket", pa.string(), "nearest aspect ratio, such as 4:3"),
        column("caption", pa.string(), "primary caption"),
        column("captions", CAPTIONS, "named captions, those of merged duplicates included"),
        column("url", pa.string(), "URL as given", nullable=True),
        column("sha256", pa.string(), "of the bytes as fetched"),
        column("xxh3", pa.string(), "of the image member"),
        column("phash", pa.string(), "64-bit perceptual hash, 16 hex characters", nullable=True),
        column("extra", CAPTIONS, "passthrough columns of the input"),
        column("extra_members", EXTRA_MEMBERS, "extra members of the source, by extension: offset, nbytes, xxh3"),
        *(column(name, pa.float32(), "score", nullable=True) for name in scores),
    ]
    return TableSchema("manifest", pa.schema(fields), sorted_by=("shard", "index_in_shard"))

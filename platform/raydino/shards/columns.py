"""The columns of a shard, ours or anybody's, brought to one form; what cannot be is refused by name."""

import numpy as np
import pyarrow as pa

from raydino.shards.schema import ShardError


def check_columns(schema: pa.Schema, where: str) -> None:
    """Check that a shard's columns are ones the reader understands. Raises ShardError naming `where`, the column and
    its type.
    """
    if "image" not in schema.names:
        raise ShardError(
            f"{where}: no column 'image' in {schema.names}; rename the column that holds the encoded images."
        )
    kind = schema.field("image").type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise ShardError(
            f"{where}: column 'image' is {kind}; it must be binary or struct<bytes: binary, path: string>."
        )
    if "label" in schema.names and not _is_label(schema.field("label").type):
        raise ShardError(
            f"{where}: column 'label' is {schema.field('label').type}; it must be an integer: cast or rename it."
        )


def _is_label(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_null(kind)


def image_parts(image: pa.Array, where: str) -> tuple[pa.Array, pa.Array]:
    """Bytes and paths of an image column, struct or plain binary. A null cell is an error: rows are counted by the
    plan.
    """
    paths = pa.nulls(len(image), pa.string())
    data = image
    if isinstance(image, pa.StructArray):
        fields = image.flatten()  # unlike `field`, it carries the nulls of the struct into its parts
        data = fields[image.type.get_field_index("bytes")]
        if (place := image.type.get_field_index("path")) >= 0:
            paths = fields[place].cast(pa.string())
    if data.null_count:
        first = int(np.flatnonzero(data.is_null().to_numpy(zero_copy_only=False))[0])
        raise ShardError(
            f"{where}: {data.null_count} of {len(data)} images have no bytes (first: row {first}); "
            "embed the files into the shard or remove the rows."
        )
    return data.cast(pa.binary()), paths


def clean_labels(column: pa.ChunkedArray) -> pa.Array:
    """int64 with null for missing; datasets write -1 for the labels of a hidden test set."""
    labels = column.combine_chunks().cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    return pa.array(labels, mask=labels < 0)

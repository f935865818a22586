"""Predictions as rows of a Parquet file: one for each image, with the columns that the bundle's outputs give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ehm.deploy.bundle.manifest import Manifest
from ehm.deploy.predict.prediction import Prediction
from ehm.errors import BackendError, ConfigError
from ehm.installation import build_install_command
from ehm.storage.names import escape_undecodable
from ehm.storage.writing import replace_file

if TYPE_CHECKING:
    import pyarrow

__all__ = ["check_columns", "write_rows"]

_COLUMNS = {"logits": ("classes", "scores"), "features": ("features",), "boxes": ("objects",)}
"""The columns that an output of the network gives."""


def check_columns(manifest: Manifest) -> None:
    """Raise ConfigError if a bundle gives nothing that fits into a row, and BackendError without pyarrow."""
    if not any(manifest.output(name) for name in _COLUMNS):
        outputs = ", ".join(manifest.output_names)
        raise ConfigError(
            f"--bundle: gives {outputs}, and rows take classes, features or objects; "
            "ehm predict BUNDLE IMAGES --out writes the others as files"
        )
    _import_pyarrow()


def write_rows(
    file: Path, manifest: Manifest, predictions: Sequence[Prediction], labels: Sequence[str | None] | None
) -> None:
    r"""Write ``predictions`` to ``file``, complete or not at all; ``labels`` are those that the source itself has.

    Columns: ``path``, in which bytes that are no UTF-8 are written ``\xe9``; ``label`` if there are ``labels``;
    ``classes`` and ``scores``, the likeliest first; ``present``, those of several labels that reach their thresholds;
    ``features``, (D,) float32; ``objects`` with label, score and box; and ``error`` for an image that cannot be read,
    whose other columns are null.
    """
    arrow = _import_pyarrow()
    from pyarrow import parquet

    schema = _make_schema(arrow, manifest, labels is not None)
    rows = [_make_row(prediction, schema.names) for prediction in predictions]
    if labels is not None:
        for row, label in zip(rows, labels, strict=True):
            row["label"] = label
    table = arrow.Table.from_pylist(rows, schema=schema)
    # several workers may write the same part, if one was taken for lost and was not
    with replace_file(file, shared=True) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def _make_row(prediction: Prediction, columns: Sequence[str]) -> dict[str, Any]:
    # Parquet's texts are valid Unicode, which names of files need not be
    row: dict[str, Any] = {"path": escape_undecodable(prediction.image), "error": None}
    if prediction.error is not None:
        row["error"] = escape_undecodable(prediction.error)
        return row
    if "classes" in columns:
        row["classes"] = [name for name, _ in prediction.classes]
        row["scores"] = [score for _, score in prediction.classes]
    if "present" in columns:
        row["present"] = list(prediction.present or ())
    if "features" in columns:
        row["features"] = prediction.features
    if "objects" in columns:
        row["objects"] = [
            {"label": each.label, "score": each.score, "box": list(each.box)} for each in prediction.objects or ()
        ]
    return row


def _make_schema(arrow: Any, manifest: Manifest, has_labels: bool) -> pyarrow.Schema:
    """Return the columns; they are the same for every part, whatever is in it."""
    text = arrow.string()
    number = arrow.float32()
    fields = [("path", text)]
    if has_labels:
        fields.append(("label", text))
    if manifest.output("logits"):
        fields += [("classes", arrow.list_(text)), ("scores", arrow.list_(number))]
    if manifest.task == "multi_label":
        fields.append(("present", arrow.list_(text)))
    features = manifest.output("features")
    if features is not None:
        fields.append(("features", arrow.list_(number, int(features.shape[-1]))))
    if manifest.output("boxes"):
        box = arrow.list_(number, 4)
        fields.append(("objects", arrow.list_(arrow.struct([("label", text), ("score", number), ("box", box)]))))
    fields.append(("error", text))
    return arrow.schema(fields)


def _import_pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise BackendError(f"pyarrow is not installed; {build_install_command('tables')} installs it") from None
    return pyarrow

"""A bundle: one folder that holds a model and all that a service must know to run it. No framework here.

DIR/model.onnx           the network, weights included (beyond 2 GB they lie in model.onnx.data beside it)
    model.int8.onnx      the same network in lower precision, if that was asked for
    model.float16.onnx
    model.om             the network as ATC compiled it for an NPU, if it did
    manifest.json        input, outputs, preprocessing, labels, source, versions, parity with the framework,
                         quality of the lower precisions, SHA-256 of every file
    README.md            the model card: documentation, which may be edited or left out
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ehm.deploy.bundle.manifest import (
    CARD,
    MANIFEST,
    OFFLINE_MODEL,
    FileRecord,
    Manifest,
    Precision,
    read_manifest,
)
from ehm.deploy.bundle.weight_files import find_weight_files
from ehm.errors import ExportError
from ehm.storage.reading import hash_file
from ehm.storage.writing import write_text

__all__ = ["Bundle"]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened and verified."""

    path: Path
    manifest: Manifest

    def model(self, precision: Precision = "float32") -> Path:
        """Return the ONNX file in a precision; raises ExportError if the bundle has none."""
        if precision not in self.manifest.models:
            raise ExportError(f"{self.path}: holds no {precision} model, only {', '.join(self.manifest.models)}")
        return self.path / self.manifest.models[precision].file

    def offline_model(self) -> Path:
        """Return the offline model for NPUs; raises ExportError if the bundle has none."""
        path = self.path / OFFLINE_MODEL
        if not path.is_file():
            raise ExportError(
                f"{self.path}: holds no {OFFLINE_MODEL}; ehm export --target ascend writes atc.sh, which makes one "
                "where CANN is installed; put it there"
            )
        return path

    def offline_version(self) -> str:
        """Return twelve hexadecimal digits that change with the offline model: the beginning of its SHA-256."""
        # a file that was made after the export is not in the manifest
        return hash_file(self.offline_model())[:12]

    def version(self, precision: Precision = "float32") -> str:
        """Return twelve hexadecimal digits that change with any file of the network.

        For a network in one file they are the beginning of its SHA-256. A graph whose weights lie beside it does not
        change with them, so its version hashes the names and hashes of all its files.
        """
        model = self.manifest.models[precision].file
        files = self.manifest.files
        weight_files = sorted(find_weight_files(self.path / model))
        if not weight_files:
            return files[model].sha256[:12]
        digest = hashlib.sha256()
        # names are hashed too, so that two weight files cannot trade places
        for name in (model, *weight_files):
            digest.update(f"{name} {files[name].sha256}\n".encode())
        return digest.hexdigest()[:12]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and verify the bundle at ``path``; raises ExportError naming the file that is missing or was altered.

        The model card may be missing or altered.
        """
        path = Path(path)
        manifest = read_manifest(path)
        # hashing reads every file once, which is cheap beside loading the network
        for name, record in manifest.files.items():
            if Path(name).name != name:
                raise ExportError(f"{path / MANIFEST}: files may not lie outside the bundle: {name!r}")
            if name != CARD:
                _check_file(path / name, record)
        for precision, model in manifest.models.items():
            if model.file not in manifest.files:
                raise ExportError(f"{path / MANIFEST}: models.{precision}: {model.file!r} is not among its files")
            # ONNX Runtime opens whatever path a graph names: only hashed files of the bundle may be read
            hashed = manifest.files.keys() - {CARD}
            for name in sorted(find_weight_files(path / model.file) - hashed):
                raise ExportError(f"{path / MANIFEST}: {model.file} reads {name!r}, which is not among its files")
        return cls(path, manifest)

    @classmethod
    def seal(cls, folder: Path, manifest: Manifest) -> Bundle:
        """Write the manifest of a folder that holds everything else, with size and SHA-256 of each file."""
        files = {}
        for file in sorted(folder.iterdir()):
            if file.name != MANIFEST:
                files[file.name] = FileRecord(bytes=file.stat().st_size, sha256=hash_file(file))
        manifest = manifest.model_copy(update={"files": files})
        # NaN is no JSON: a figure that is not finite must not get into a manifest
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False, ensure_ascii=False)
        write_text(folder / MANIFEST, text + "\n")
        return cls(folder, manifest)


def _check_file(file: Path, record: FileRecord) -> None:
    """Raise ExportError if a file of a bundle is missing or is not the one that was recorded."""
    if not file.is_file():
        raise ExportError(f"{file}: missing; the bundle is incomplete")
    try:
        sha256 = hash_file(file)
    except OSError as error:
        raise ExportError(f"{file}: cannot be read: {error.strerror}") from None
    if sha256 != record.sha256:
        raise ExportError(f"{file}: does not match the SHA-256 in {MANIFEST}; it was altered or damaged")

"""A bundle loaded into ONNX Runtime or onto an NPU: from an image to the network's input, and on to its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehm.data.decoding.channels import read_channels
from ehm.data.decoding.decode import decode_image
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.bundle.manifest import OFFLINE_MODEL, Precision
from ehm.deploy.bundle.preprocessing import create_eval_transform, normalise_pixels
from ehm.deploy.predict.offline_parity import names_offline_model
from ehm.deploy.predict.registry import create_handler
from ehm.deploy.predict.sessions import open_network

__all__ = ["Predictor"]


class Predictor:
    """A verified bundle that is loaded and ready for images; safe to share between threads.

    ``device`` is one of ONNX Runtime's, or ``om`` for the bundle's offline model on an NPU (`open_network`).
    ``handler`` knows what is particular to the bundle's task; ``network`` is the precision that runs, or the name of
    the offline model.
    """

    def __init__(
        self, bundle: str | Path | Bundle, device: str = "cpu", precision: Precision = "float32", threads: int = 0
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.manifest = self.bundle.manifest
        self.handler = create_handler(self.manifest)
        self._precision = precision
        self.network: str = OFFLINE_MODEL if names_offline_model(device) else precision
        # several threads may run one session
        self._session = open_network(self.bundle, device, precision, threads)
        self.provider: str = self._session.get_providers()[0]
        self._transform = create_eval_transform(self.manifest.preprocessing)

    @property
    def version(self) -> str:
        """Return what changes with any file of the network that runs; see `Bundle.version`."""
        if self.network == OFFLINE_MODEL:
            return self.bundle.offline_version()
        return self.bundle.version(self._precision)

    @property
    def sufficient_size(self) -> tuple[int, int] | None:
        """The (height, width) that `prepare` resizes images to, for `decode_image`; None if the network does it."""
        preprocessing = self.manifest.preprocessing
        return None if preprocessing.in_graph else preprocessing.cover

    def decode(self, file: str | Path | BytesIO, enough: tuple[int, int] | None = None) -> Any:
        """Read an image file as the network was trained to see it; see `ehm.data.decode_image`.

        An image that is no photograph is an array (H, W, C), see `ehm.data.decoding.channels.read_channels`.
        """
        pixels = self.manifest.preprocessing.pixels
        if pixels.is_rgb:
            return decode_image(file, enough=enough, value_range=pixels.range)
        return read_channels(file, pixels)

    def prepare(self, image: Any) -> NDArray[Any]:
        """Turn an image of any size, as `decode` gives it for ``sufficient_size``, into one input.

        That is a normalised array (C, H, W), or the image's pixels (H, W, C) if the graph does the rest.
        """
        if self.manifest.preprocessing.in_graph:
            return np.asarray(image)
        return normalise_pixels(self._transform(image), self.manifest.preprocessing)

    def run(self, inputs: NDArray[Any], names: Sequence[str] = ()) -> dict[str, NDArray[np.float32]]:
        """Run the network on inputs (B, ...) of one size; return the outputs of those names, by default all."""
        names = list(names) or self.manifest.output_names
        values = self._session.run(names, {self.manifest.input.name: inputs})
        return dict(zip(names, values, strict=True))

    def run_batch(self, inputs: NDArray[Any], names: Sequence[str] = ()) -> dict[str, NDArray[np.float32]]:
        """Run the network as `run` does, so that every output has a row for each image, a detector's outputs too."""
        return self.handler.add_batch_axis(self.run(inputs, names))

"""``ehm export``: what the graph is written for, calibration, and what else is written beside it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ehm.config.sections import ModelSource, Positive, Section

__all__ = ["AscendConfig", "CalibrationConfig", "ExportConfig", "TritonConfig"]


class TritonConfig(Section):
    """What ``ehm export --triton`` and ``--kserve`` write.

    ``name`` is the model's, by default that of the bundle's folder. A request waits up to ``max_queue_delay`` (µs) for
    others to share a batch with, of one of ``preferred_batch_size`` where there are any; beyond ``max_queue_size``
    waiting ones it is refused. ``instances`` of the network run at once, each with ``threads`` on the CPU (0: one for
    each core of the machine). ``storage_uri`` is where KServe finds the repository.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]*$", description="of letters, digits, '_', '-' and '.'")] = ""
    max_batch_size: Positive = 32
    preferred_batch_size: tuple[Positive, ...] = ()
    max_queue_delay: Annotated[int, Field(ge=0)] = 2000
    max_queue_size: Positive = 256
    instances: Positive = 1
    threads: Annotated[int, Field(ge=0)] = 0
    storage_uri: Annotated[
        str, Field(pattern=r"^[a-z0-9+]+://.+$", description="a URI, for example s3://BUCKET/FOLDER")
    ] = "s3://BUCKET/FOLDER"

    @model_validator(mode="after")
    def _fits_together(self) -> TritonConfig:
        if max(self.preferred_batch_size, default=0) > self.max_batch_size:
            raise ValueError(f"preferred_batch_size goes beyond max_batch_size {self.max_batch_size}")
        return self


class AscendConfig(Section):
    """What ``ehm export --target ascend`` hands to ATC: the processor (``npu-smi info`` shows it) and the batch sizes.

    ATC takes 2 to 100 batch sizes, each up to 2048 (its reference, ``--dynamic_batch_size``).
    """

    soc_version: Annotated[str, Field(pattern=r"^\w+$", description="one word, for example Ascend910B3")] = (
        "Ascend910B3"
    )
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=2048)], ...], Field(min_length=2, max_length=100)] = (
        1,
        2,
        4,
        8,
        16,
        32,
    )


class CalibrationConfig(Section):
    """``calibration``: photographs that int8 takes its ranges from, and others that its quality is measured on.

    ``source`` and ``measure`` are what ``data.source`` may be. Left out, they are what the checkpoint was trained on
    and what its training held out; with ``source`` alone, its validation part, or images that calibrated nothing.
    ``images`` and ``measure_images`` are how many to take at most.
    """

    source: str | None = None
    images: Positive = 128
    measure: str | None = None
    measure_images: Positive = 512


class ExportConfig(Section):
    """``ehm export``: what the graph is written for, and what the weights leave open.

    ``opset`` is the ONNX operator set. ``target`` is ``portable`` (ONNX's plain operators), ``onnxruntime`` (its own
    attention beside them) or ``ascend`` (what its converter takes: operator sets 17 and 18, and the batch as only
    dynamic dimension). With ``preprocessing`` the graph takes bytes of any size and does everything behind the
    decoding; with ``dynamic_size`` a plain ViT takes images of any multiple of its patches. Both need ``opset`` 18,
    which is then the default. ``license`` and ``data_license`` are for the model card.

    ``model.init`` is the command's own argument; ``model.image_size`` resamples the positions. ``int8`` and ``float16``
    write the network in these numbers too.
    """

    opset: Annotated[int, Field(ge=17, le=20)] = 17
    target: Literal["onnxruntime", "portable", "ascend"] = "portable"
    preprocessing: bool = False
    dynamic_size: bool = False
    license: str | None = None
    data_license: str | None = None
    model: ModelSource = ModelSource()
    int8: bool = False
    float16: bool = False
    calibration: CalibrationConfig = CalibrationConfig()
    triton: TritonConfig = TritonConfig()
    ascend: AscendConfig = AscendConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_opset(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("preprocessing") or values.get("dynamic_size")):
            return {"opset": 18, **values}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> ExportConfig:
        wanted = [key for key in ("preprocessing", "dynamic_size") if getattr(self, key)]
        if len(wanted) > 1:
            raise ValueError("preprocessing brings every image to one size; leave dynamic_size out")
        if self.target == "ascend" and wanted:
            raise ValueError(f"target ascend: only the batch may be dynamic; leave {wanted[0]} out")
        if self.target == "ascend" and self.int8:
            raise ValueError("target ascend: its converter knows no quantised operators; leave int8 out")
        if self.target == "ascend" and self.opset > 18:
            raise ValueError(f"target ascend: opset {self.opset}: its converter takes 17 and 18")
        if wanted and self.opset < 18:
            raise ValueError(f"opset {self.opset}: {wanted[0]} needs 18, the first with an antialiased resize")
        return self

"""``ehm export``: what the graph is written for, calibration, and what else is written beside it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ehm.config.section import Section
from ehm.config.sections import ModelSource
from ehm.config.values import Count, Positive, require_match

__all__ = ["AscendConfig", "BatchesConfig", "CalibrationConfig", "ExportConfig", "TritonConfig"]

_Name = Annotated[str, AfterValidator(require_match(r"[\w.-]*", "made of letters, digits, '_', '-' and '.'"))]
_Uri = Annotated[str, AfterValidator(require_match(r"[a-z0-9+]+://.+", "a URI, for example s3://BUCKET/FOLDER"))]
_Word = Annotated[str, AfterValidator(require_match(r"\w+", "one word, for example Ascend910B3"))]


class TritonConfig(Section):
    """``triton``: what ``ehm export --triton`` and ``--kserve`` write."""

    name: _Name = Field("", description="Name of the model; empty takes that of the bundle's folder.")
    max_batch_size: Positive = Field(32, description="Largest number of images in a batch.")
    preferred_batch_size: tuple[Positive, ...] = Field(
        (), description="Batch sizes that requests are put together to if possible; empty takes any."
    )
    max_queue_delay: Count = Field(
        2000, description="Longest time in microseconds that a request waits for others to share a batch with."
    )
    max_queue_size: Positive = Field(256, description="Number of waiting requests beyond which more are refused.")
    instances: Positive = Field(1, description="Number of copies of the network that run at once.")
    threads: Count = Field(
        0, description="Number of CPU threads of each instance; 0 takes one for each core of the machine."
    )
    storage_uri: _Uri = Field("s3://BUCKET/FOLDER", description="The place where KServe finds the repository.")

    @model_validator(mode="after")
    def _check_together(self) -> TritonConfig:
        if max(self.preferred_batch_size, default=0) > self.max_batch_size:
            raise ValueError(f"preferred_batch_size goes beyond max_batch_size {self.max_batch_size}")
        return self


class AscendConfig(Section):
    """``ascend``: what ``ehm export --target ascend`` passes to ATC, the converter of Ascend."""

    soc_version: _Word = Field(
        "Ascend910B3", description="The processor that the model is converted for; npu-smi info shows it."
    )
    # The limits are those of --dynamic_batch_size in ATC's reference.
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1, le=2048)], ...], Field(min_length=2, max_length=100)] = (
        Field((1, 2, 4, 8, 16, 32), description="The batch sizes that the converted model takes, 2 to 100 of them.")
    )
    precision: Literal["measured", "origin", "fp16", "mixed"] = Field(
        "measured",
        description="The precision of the converted model: origin keeps the graph's types, fp16 is float16, mixed is "
        "float16 but for float32_operators; measured tries all on the NPU and takes the fastest that is near enough.",
    )
    float32_operators: tuple[_Word, ...] = Field(
        ("ReduceMean", "Sqrt", "Div", "Softmax"), description="ONNX operators that mixed precision keeps in float32."
    )
    cosine: Annotated[float, Field(gt=0, le=1)] = Field(
        0.999, description="Smallest cosine to the ONNX file that an output of the converted model may have."
    )
    agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        0.99,
        description="Smallest share of images whose likeliest class has to stay the same when precisions are tried.",
    )


class BatchesConfig(Section):
    """``batches``: the batch sizes that TensorRT prepares a network for (``--device tensorrt``)."""

    usual: Positive = Field(8, description="Number of images in a batch for which it is made the fastest.")
    largest: Positive = Field(32, description="Largest number of images in a batch; larger ones are cut.")

    @model_validator(mode="after")
    def _check_together(self) -> BatchesConfig:
        if self.usual > self.largest:
            raise ValueError(f"usual {self.usual} goes beyond largest {self.largest}")
        return self


class CalibrationConfig(Section):
    """``calibration``: images that int8 takes its ranges from, and others that its quality is measured on."""

    source: str | None = Field(
        None,
        description="Images that calibrate, as in data.source; null takes what the checkpoint was trained on.",
    )
    images: Positive = Field(128, description="Largest number of images that calibrate.")
    measure: str | None = Field(
        None,
        description="Images that quality is measured on, as in data.source; null takes what training held out, or "
        "with calibration.source its validation part, or else images that did not calibrate.",
    )
    measure_images: Positive = Field(512, description="Largest number of images that quality is measured on.")


class ExportConfig(Section):
    """An export: what the graph is written for, and what the weights leave open."""

    opset: Annotated[int, Field(ge=17, le=20)] = Field(
        17, description="ONNX operator set; 18 by default with preprocessing or dynamic_size, which need it."
    )
    target: Literal["onnxruntime", "portable", "ascend"] = Field(
        "portable",
        description="What the graph is written for: portable uses plain ONNX operators, onnxruntime also its own "
        "attention, ascend what its converter takes (opset 17 or 18, only the batch dynamic).",
    )
    preprocessing: bool = Field(
        False, description="Whether the graph takes bytes of any size and resizes, crops and normalises them itself."
    )
    dynamic_size: bool = Field(
        False, description="Whether a ViT whose positions are added takes images of any multiple of its patches."
    )
    license: str | None = Field(None, description="License of the model, for the model card.")
    data_license: str | None = Field(None, description="License of the training images, for the model card.")
    model: ModelSource = ModelSource()
    int8: bool = Field(False, description="Whether the network is written in int8 too.")
    float16: bool = Field(False, description="Whether the network is written in float16 too.")
    calibration: CalibrationConfig = CalibrationConfig()
    triton: TritonConfig = TritonConfig()
    ascend: AscendConfig = AscendConfig()
    batches: BatchesConfig = BatchesConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_opset(cls, values: Any) -> Any:
        # Opset 18 is the first with an antialiased resize, which both need; an opset that is set is checked below.
        if isinstance(values, dict) and (values.get("preprocessing") or values.get("dynamic_size")):
            return {"opset": 18, **values}
        return values

    @model_validator(mode="after")
    def _check_together(self) -> ExportConfig:
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

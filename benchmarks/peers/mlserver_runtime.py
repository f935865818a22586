"""A runtime of mlserver's: image files in base64, as its protocol has them, to the shares of classes."""

import asyncio
import io
import json
from pathlib import Path

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from PIL import Image


class Classifier(MLModel):
    async def load(self) -> bool:
        folder = Path(self.settings.parameters.uri)
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.session = onnxruntime.InferenceSession(folder / self.manifest["models"]["float32"]["file"])
        self.mean, self.std = (np.float32(self.manifest["preprocessing"][key]) for key in ("mean", "std"))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        shares = await asyncio.to_thread(self.classify, Base64Codec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("shares", shares)])

    def classify(self, files: list) -> np.ndarray:
        inputs = np.stack([self.prepare(data) for data in files])
        (logits,) = self.session.run(["logits"], {self.manifest["input"]["name"]: inputs})
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)

    def prepare(self, data: bytes) -> np.ndarray:
        rule = self.manifest["preprocessing"]
        (height, width), (cover_height, cover_width) = rule["image_size"], rule["cover"]
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = max(cover_height / image.height, cover_width / image.width)
        size = int(image.width * scale + 1e-6), int(image.height * scale + 1e-6)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
        return ((pixels - self.mean) / self.std).transpose(2, 0, 1)

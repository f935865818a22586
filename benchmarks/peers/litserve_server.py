"""LitServe with batches of up to eight images: litserve_server.py BUNDLE PORT."""

import io
import json
import sys
from pathlib import Path

import litserve
import numpy as np
import onnxruntime
from fastapi import Request
from PIL import Image


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        folder = sys.argv[1]
        self.manifest = json.loads(Path(folder, "manifest.json").read_text())
        self.session = onnxruntime.InferenceSession(f"{folder}/{self.manifest['models']['float32']['file']}")
        self.mean, self.std = (np.float32(self.manifest["preprocessing"][key]) for key in ("mean", "std"))

    def decode_request(self, request: Request) -> np.ndarray:
        rule = self.manifest["preprocessing"]
        (height, width), (cover_height, cover_width) = rule["image_size"], rule["cover"]
        image = Image.open(io.BytesIO(request["image"].file.read())).convert("RGB")
        scale = max(cover_height / image.height, cover_width / image.width)
        size = int(image.width * scale + 1e-6), int(image.height * scale + 1e-6)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
        return ((pixels - self.mean) / self.std).transpose(2, 0, 1)

    def batch(self, inputs: list) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, images: np.ndarray) -> np.ndarray:
        (logits,) = self.session.run(["logits"], {self.manifest["input"]["name"]: images})
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)

    def unbatch(self, output: np.ndarray) -> list:
        return list(output)

    def encode_response(self, shares: np.ndarray) -> dict:
        labels = self.manifest["labels"]
        return {"classes": [{"label": labels[i], "probability": float(shares[i])} for i in np.argsort(-shares)]}


if __name__ == "__main__":
    api = Classifier(max_batch_size=8, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")

"""FastAPI with ONNX Runtime as one writes it in ten minutes: fastapi_server.py BUNDLE PORT [sleep].

With ``sleep``, the network's threads sleep while they wait.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool

bundle, port, *waiting = sys.argv[1:]
manifest = json.loads(Path(bundle, "manifest.json").read_text())
rule = manifest["preprocessing"]
(height, width), (cover_height, cover_width) = rule["image_size"], rule["cover"]
mean, std = np.float32(rule["mean"]), np.float32(rule["std"])
options = onnxruntime.SessionOptions()
if waiting == ["sleep"]:
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(f"{bundle}/{manifest['models']['float32']['file']}", options)
app = FastAPI()


def classify(data: bytes) -> dict:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = max(cover_height / image.height, cover_width / image.width)
    image = image.resize((int(image.width * scale + 1e-6), int(image.height * scale + 1e-6)), Image.Resampling.BICUBIC)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
    (logits,) = session.run(["logits"], {manifest["input"]["name"]: ((pixels - mean) / std).transpose(2, 0, 1)[None]})
    shares = np.exp(logits[0] - logits[0].max())
    shares /= shares.sum()
    return {"classes": [{"label": manifest["labels"][i], "probability": float(shares[i])} for i in np.argsort(-shares)]}


@app.post("/v1/classify")
async def route(request: Request) -> dict:
    return await run_in_threadpool(classify, await request.body())


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")

"""A comparison of the outputs of ``model.om`` and ``model.onnx``, for every batch size.

On a machine with an NPU, CANN and Ascend's ``ais_bench`` (its InferSession runs offline models):

    python benchmarks/om_parity.py BUNDLE IMAGES [--batches 1 2 4 8] [--device 0] [--om model.om]

BUNDLE was written with ``ehm export --target ascend``; IMAGES is a folder of photographs. The ONNX file runs on the CPU
in float32. Exits with 1 if a cosine is below 0.9999. It has run with a stand-in for ais_bench only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from ehm.data.decoding.decode import SUFFIXES
from ehm.deploy.bundle.bundle import Bundle
from ehm.deploy.predict.predictor import Predictor

LEAST_COSINE = 0.9999


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="batch sizes that ATC was given")
    parser.add_argument("--device", type=int, default=0, help="number of the NPU")
    parser.add_argument("--om", type=Path, help="default: model.om in the bundle")
    args = parser.parse_args()
    from ais_bench.infer.interface import InferSession

    predictor = Predictor(Bundle.open(args.bundle))
    names = [output.name for output in predictor.manifest.outputs]
    files = sorted(file for file in args.images.rglob("*") if file.suffix.lower() in SUFFIXES)[: max(args.batches)]
    pictures = np.stack([predictor.prepare(predictor.decode(file)) for file in files])
    session = InferSession(args.device, str(args.om or args.bundle / "model.om"))
    worst = 1.0
    print(f"{'batch':>5}  {'output':10}  {'largest difference':>18}  {'smallest cosine':>15}")
    for batch in args.batches:
        inputs = np.resize(pictures, (batch, *pictures.shape[1:]))  # repeats images if there are too few
        expected = predictor.run(inputs)
        for name, found in zip(names, session.infer([inputs], mode="dymbatch"), strict=True):
            a = np.asarray(expected[name], np.float64).reshape(batch, -1)
            b = np.asarray(found, np.float64).reshape(batch, -1)
            cosine = float(np.min(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))
            print(f"{batch:5}  {name:10}  {np.abs(a - b).max():18.2e}  {cosine:15.7f}")
            worst = min(worst, cosine)
    return 0 if worst >= LEAST_COSINE else 1


if __name__ == "__main__":
    sys.exit(main())

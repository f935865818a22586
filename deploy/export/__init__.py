"""Export a trained model as a bundle: an ONNX file that was compared with a framework, and a manifest beside it.

Our own encoders, whatever their form, are written from their arrays, the same with any framework; torch's exporter
writes networks that only timm has, detectors and the eyes of language models.
"""

from ehm.deploy.export.pipeline import export

__all__ = ["export"]

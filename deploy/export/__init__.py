"""Export a trained model as a bundle: an ONNX file that was compared with a framework, and a manifest beside it.

Our own plain ViTs are written from their arrays, the same with any framework; torch exports timm's models, Swins and
ViTs in the relative form.
"""

from ehm.deploy.export.pipeline import export

__all__ = ["export"]

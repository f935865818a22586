"""Prediction with ONNX Runtime, without a training framework."""

"""Modules in the form that torch.onnx exports."""

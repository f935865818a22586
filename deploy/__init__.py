"""From a trained model to a service: bundles, their export, and prediction with ONNX Runtime alone."""

"""ONNX graphs: our own writer, torch's exporter, and preprocessing in the graph."""

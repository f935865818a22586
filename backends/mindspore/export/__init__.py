"""Arrays in the form that the ONNX writer takes, from MindSpore."""

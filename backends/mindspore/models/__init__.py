"""Networks as MindSpore cells; every parameter has the name that it has in timm and in the published checkpoints."""

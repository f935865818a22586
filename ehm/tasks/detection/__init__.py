"""Object detection and instance segmentation: the task and its metrics."""

"""Semantic segmentation: the task and its metrics."""

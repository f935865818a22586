"""Readers of images and annotations, one file a layout on disk."""

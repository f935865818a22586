"""Readers of questions about images, one file a layout on disk."""

"""Bundles: the folder that an export writes and that predict and serve read."""

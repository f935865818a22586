"""Loaded models, batching and the way of a request through them."""

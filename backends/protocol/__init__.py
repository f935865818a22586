"""The parts of the protocol, by what they are about; :mod:`ehm.backends.base` gives all of their names.

Shapes: B images, H x W pixels, N patches, D features, C classes, K latents, L = 1 + N tokens (the class token first).
"""

"""Devices, processes, optimisers and the training step of the MindSpore backend."""

"""The ingredients of similarities in tests."""

import numpy as np


def symmetric(values):
    return (values + values.swapaxes(-1, -2)) / 2


def softmax(logits):
    logits = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return logits / logits.sum(axis=-1, keepdims=True)

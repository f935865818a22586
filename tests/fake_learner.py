"""A learner of plain NumPy: the loop can be tested without any framework."""

import numpy as np

from ehm.backends.base import ALONE, DeviceInfo, Reconstruction
from ehm.storage.arrays import LearnerState


class FakeBatch:
    """Images in which patches of like brightness are similar, and bright ones salient."""

    def __init__(self, images, learner):
        self.images, self.learner = images, learner

    def compute_similarity(self):
        self.learner.calls.append(("similarity", len(self.images)))
        flat = self._patches()
        yield 1 / (1 + np.abs(flat[:, :, None] - flat[:, None, :]))

    def compute_saliency(self):
        self.learner.calls.append(("saliency", len(self.images)))
        flat = self._patches() + 1
        yield flat / (flat.sum(axis=1, keepdims=True) + 1)

    def _patches(self):
        return self.images.reshape(len(self.images), -1)[:, : self.learner.patches].astype(np.float32)


class FakeLearner:
    """Counts what the loop asks for; its one parameter moves by lr times the share of bright masked patches."""

    notes = ()

    def __init__(self, config, fail_at=None):
        self.patches, self.fail_at = config.spec.patches, fail_at
        self.weight, self.steps = np.zeros(1, np.float64), 0
        self.calls = []

    def prepare_batch(self, images):
        return FakeBatch(images, self)

    def train_step(self, batch, mask, lr, weight_decay, ema_decay=None):
        images = batch.images
        self.steps += 1
        self.calls.append(("train_step", mask, lr, weight_decay))
        self.weight += lr * (images.mean() + mask @ np.arange(mask.shape[1])).mean()
        return {"loss": np.float64(np.nan if self.steps == self.fail_at else 1 / self.steps)}

    def reconstruct_images(self, images, mask):
        self.calls.append(("reconstruct", mask))
        return Reconstruction(images.astype(np.float32) / 255, note="The images themselves.")

    def compute_features(self, images, average=False):
        self.calls.append(("features", len(images)))
        flat = images.reshape(len(images), -1)[:, : self.patches].astype(np.float32)
        return flat + np.float32(self.weight[0])

    def state(self):
        return LearnerState(
            {"weight": self.weight.copy(), "decoder_pred.bias": np.zeros(1), "mask_token": np.zeros(1)},
            {"step": np.array(self.steps)},
        )

    def load(self, state):
        self.weight, self.steps = state.model["weight"].copy(), int(state.optimizer["step"])


class FakeBackend:
    name = "fake"
    processes = ALONE

    def __init__(self, fail_at=None):
        self.fail_at = fail_at
        self.learners = []

    def describe_device(self):
        return DeviceInfo("fake", "NumPy", 1, None, ("float64",))

    def is_busy(self):
        return False

    def read_peak_memory(self):
        return 1000

    def create_learner(self, config, weights=None):
        self.learners.append(FakeLearner(config, self.fail_at))
        return self.learners[-1]

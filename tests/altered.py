"""A CPU with a fault: what its learners compute is changed on the way out, as a broken device would change it."""

from ehm import backends
from ehm.backends.base import ALONE, DeviceInfo


class AlteredBatch:
    def __init__(self, inner, faults):
        self.inner = inner
        self.images = inner.images
        self._faults = faults

    def compute_similarity(self):
        alter = self._faults.get("similarity", lambda part: part)
        return [alter(part) for part in self.inner.compute_similarity()]

    def compute_saliency(self):
        return self.inner.compute_saliency()

    def compute_evolved_masks(self, depth, ranks):
        mask, figures = self.inner.compute_evolved_masks(depth, ranks)
        return self._faults.get("mask", lambda mask: mask)(mask), figures


class AlteredLearner:
    def __init__(self, inner, faults):
        self.inner = inner
        self._faults = faults

    def prepare_batch(self, images):
        return AlteredBatch(self.inner.prepare_batch(images), self._faults)

    def train_step(self, batch, *arguments):
        metrics = self.inner.train_step(batch.inner, *arguments)
        return {**metrics, "loss": self._faults.get("loss", float)(float(metrics["loss"]))}

    def state(self):
        state = self.inner.state()
        self._faults.get("state", lambda state: None)(state)
        return state

    def load(self, state):
        self._faults.get("load", lambda state: None)(state)
        self.inner.load(state)

    def __getattr__(self, name):
        return getattr(self.inner, name)


class AlteredCpu:
    """A backend whose learners have ``faults``: functions by the name of what they change."""

    name = "altered"
    processes = ALONE

    def __init__(self, **faults):
        self._faults = faults

    def describe_device(self):
        return DeviceInfo("altered", "a CPU with a fault", 1, None, ("float32",))

    def create_learner(self, config):
        return AlteredLearner(backends.get("cpu").create_learner(config), self._faults)

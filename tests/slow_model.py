"""A model that takes as long as a test wants."""

import threading

from waiting import LIMIT

from ehm.deploy.predict.predictor import Predictor


class SlowModel:
    """Make every run of a network wait between ``hold`` and ``release``, and note how many images each run has."""

    def __init__(self, monkeypatch):
        self.batches = []
        self._may_run = threading.Event()
        self._may_run.set()
        run = Predictor.run

        def wait_and_run(predictor, images, names=()):
            self.batches.append(len(images))
            assert self._may_run.wait(LIMIT)
            return run(predictor, images, names)

        monkeypatch.setattr(Predictor, "run", wait_and_run)

    def hold(self):
        """Let runs that begin from now on wait, and forget those of the warm-up."""
        self._may_run.clear()
        self.batches.clear()

    def release(self):
        self._may_run.set()

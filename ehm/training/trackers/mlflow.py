"""MLflow: a run of the experiment in ``MLFLOW_EXPERIMENT_NAME`` (``ehm``) on the server of ``MLFLOW_TRACKING_URI``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ehm.training.trackers.base import Setting, Status, TrackedRun, TrackerRun

__all__ = ["MlflowTracker"]

_EXPERIMENT = "ehm"
_STATUSES: dict[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_LONGEST_VALUE = 6000
"""Characters of a parameter that MLflow takes."""
_PARAMS_AT_ONCE = 100
"""Parameters that MLflow takes in one request."""


class MlflowTracker:
    """A run of MLflow.

    A server only adds values and never replaces them, so a resumed run sends only the steps that the server lacks.
    Nothing is lost by that, because a resumed run takes the same steps again, with the same values.
    """

    def start(self, run: TrackedRun) -> TrackerRun:
        """Create a run, or continue the one with the id ``run.id``."""
        # set before the import, which reads it
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        # only for the first call: a wrong address fails within seconds, and later calls wait while a server restarts
        is_own_limit = "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
        if is_own_limit:
            os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        if is_own_limit:
            del os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]
        if run.id is None:
            experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
            opened = self._client.create_run(experiment, run_name=run.name)
        else:
            self._client.update_run(run.id, status="RUNNING")
            opened = self._client.get_run(run.id)
        self._id = opened.info.run_id
        self._last_steps = {key: self._find_last_step(key) for key in opened.data.metrics}
        # only new parameters, because MLflow refuses to change the value of one
        self._send_settings({key: value for key, value in run.settings.items() if key not in opened.data.params})
        address = self._client.tracking_uri.rstrip("/")
        if address.startswith("http"):
            address += f"/#/experiments/{opened.info.experiment_id}/runs/{self._id}"
        return TrackerRun(self._id, address)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values that the server does not have yet."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = []
        for key, value in values.items():
            if step > self._last_steps.get(key, -1):
                metrics.append(Metric(key, value, now, step))
        self._client.log_batch(self._id, metrics=metrics)

    def add_picture(self, step: int, name: str, path: Path) -> None:
        """Send a picture, which MLflow shows beside those of other steps."""
        with Image.open(path) as picture:
            self._client.log_image(self._id, picture.convert("RGB"), key=name, step=step)

    def finish(self, status: Status) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, _STATUSES[status])

    def _find_last_step(self, key: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._id, key)), default=-1)

    def _send_settings(self, settings: Mapping[str, Setting]) -> None:
        from mlflow.entities import Param

        params: list[Any] = []
        for key, value in settings.items():
            text = value if isinstance(value, str) else str(value)
            params.append(Param(key, text[:_LONGEST_VALUE]))
        for first in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=params[first : first + _PARAMS_AT_ONCE])

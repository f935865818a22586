"""The metrics that Prometheus reads at ``/metrics``. Times are in seconds.

Only names of models become labels: a client could fill the memory with names of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

__all__ = ["Metrics", "ModelMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds of the buckets for times: from those of a tiny network to the usual timeout."""
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Upper bounds of the buckets for numbers of images."""


class Metrics:
    """Every metric of one server, in a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a gauge beside every series that says when it began
        # not the global one, so that several servers can live in one process, as in tests
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "ehm_requests", "Requests answered", ["model", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "ehm_request_seconds",
            "From a request's head to its answer, of requests that ran the model or waited for it",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._reloads = Counter(
            "ehm_model_loads", "Bundles loaded, at the start and later", ["model", "result"], registry=self.registry
        )
        self._info = Gauge(
            "ehm_model_info",
            "1 for each model that is served",
            ["model", "version", "task", "precision", "provider"],
            registry=self.registry,
        )
        self.connections = Gauge("ehm_connections", "Open connections", registry=self.registry)
        self.dropped = Counter(
            "ehm_connections_dropped",
            "Connections that the server ended: of clients that do not read, or over the limit",
            ["reason"],
            registry=self.registry,
        )
        self.waiting = Gauge("ehm_queue_images", "Images that wait for a batch", ["model"], registry=self.registry)
        self.batch_size = Histogram(
            "ehm_batch_images", "Images of a batch", ["model"], buckets=_IMAGES, registry=self.registry
        )
        self.queue_seconds = Histogram(
            "ehm_queue_seconds", "From queueing to running", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "ehm_inference_seconds", "Running a batch", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self._shown: dict[str, tuple[str, ...]] = {}

    def for_model(self, name: str) -> ModelMetrics:
        """Return the metrics of one model."""
        return ModelMetrics(self, name)

    def count_request(self, model: str, route: str, status: int, seconds: float, asked: bool) -> None:
        """Count an answer; ``route`` is the path's template, or empty if there is none.

        Its time counts if the model was ``asked``: probes, and refusals that cost nothing, would hide how long
        inference takes. One that failed or came too late (5xx) counts.
        """
        self._requests.labels(model, route, str(status)).inc()
        if asked and not 400 <= status < 500:
            self._seconds.labels(model).observe(seconds)

    def count_load(self, model: str, succeeded: bool) -> None:
        """Count an attempt to load a bundle."""
        self._reloads.labels(model, "success" if succeeded else "failure").inc()

    def show_model(self, model: str, labels: tuple[str, str, str, str] | None) -> None:
        """Show what is served under a name: version, task, precision and provider, or nothing any more."""
        # a series of an earlier version would go on beside the new one
        if model in self._shown:
            self._info.remove(model, *self._shown.pop(model))
        if labels:
            self._info.labels(model, *labels).set(1)
            self._shown[model] = labels

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The metrics that the batcher of one model reports."""

    def __init__(self, metrics: Metrics, name: str) -> None:
        self._waiting = metrics.waiting.labels(name)
        self._size = metrics.batch_size.labels(name)
        self._queue = metrics.queue_seconds.labels(name)
        self._run = metrics.batch_seconds.labels(name)

    def change_waiting(self, change: int) -> None:
        """Change the number of images that wait."""
        self._waiting.inc(change)

    def observe_batch(self, size: int, waited: Sequence[float], seconds: float) -> None:
        """Count a batch of ``size`` images that ran for ``seconds`` after its parts had ``waited``."""
        self._size.observe(size)
        self._run.observe(seconds)
        for part in waited:
            self._queue.observe(part)

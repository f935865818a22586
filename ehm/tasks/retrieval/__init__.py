"""Image retrieval: the task, its metrics and its benchmarks."""

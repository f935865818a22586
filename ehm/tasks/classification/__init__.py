"""Classification: the task, its metrics, Mixup and CutMix, and probes of frozen encoders."""

"""Detection in a minute: the configuration of a small detector for the pictures of scenes.py."""

from ehm.config import DetectionConfig

SIDE = 64
"""Height of the pictures in pixels; they are 48 to 80 across."""


def make_detection_config(source, **sections):
    """Return a configuration that trains on a folder; sections, and keys outside of them, are keywords."""
    values = {
        "model": {
            "encoder": "vit_tiny",
            "width": 48,
            "depth": 4,
            "heads": 3,
            "image_size": SIDE,
            "patch_size": 8,
            "drop_path": 0.1,
        },
        "data": {"source": str(source), "workers": 0},
        "min_size": SIDE,
        "max_size": 96,
        "anchor_sizes": [8, 16, 24, 32, 48],
        "width": 32,
        "proposals": 32,
        "optim": {
            "epochs": 6,
            "batch_size": 4,
            "base_lr": 0.2,
            "clip_grad": 1,
            "warmup_steps": 10,
            "schedule": "cosine",
            "dtype": "float32",
        },
        "run": {"trackers": [], "measure_every": 100, "checkpoint_every": 100},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return DetectionConfig.model_validate(values)

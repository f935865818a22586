"""The training loops, and what surrounds their steps: schedules, logs and checkpoints."""

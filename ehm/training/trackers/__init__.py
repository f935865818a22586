"""Trackers: programs that show the figures of runs, each by its own library and by its name in ``run.trackers``."""

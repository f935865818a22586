"""The report of a run: one HTML file in its folder, made of what the folder holds and of nothing else."""

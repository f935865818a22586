"""Jobs of clusters: files for Slurm, Kubeflow and Volcano that run a training command of ehm on several machines."""

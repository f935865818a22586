"""Predictions for all images of a source, as Parquet files: in one process, or on the machines of a Ray cluster."""

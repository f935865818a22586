"""Tables of images: CSV, JSON lines and Parquet files with the path and the labels of each image."""

"""The process and the web application: socket, signals, limits at the edge, logs."""

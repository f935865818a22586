"""Models in int8 and float16, their calibration and their quality."""

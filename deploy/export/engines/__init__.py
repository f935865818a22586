"""Files for other inference engines: Triton, KServe, Ascend's ATC."""

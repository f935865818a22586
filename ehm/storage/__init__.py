"""Named arrays and files on disk: reading and writing them safely, and checkpoints."""

"""From image files to pixels: formats, bit depths, colours and orientation."""

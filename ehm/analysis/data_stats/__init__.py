"""Statistics of the images of a source, before the first run: moments, formats, copies, damage and thumbnails."""

"""Vision-language: an encoder as the eyes of a frozen language model, measured by questions about images."""

"""The pages of the reference, made from the code, so that they say what it does today."""

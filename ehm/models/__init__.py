"""Encoders as named arrays, without a framework: reading, checking and fitting weights."""

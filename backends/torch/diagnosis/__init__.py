"""Operators that a step uses, and those that an accelerator has."""

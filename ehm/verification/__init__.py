"""Verification of a device from an installed ehm, without the tests: ``ehm verify``.

The list of the checks stands in :mod:`ehm.verification.plan`; each kind of check is a file of its own. Everything goes
through the protocol of :mod:`ehm.backends.base`, so that every framework and device is checked by the same code.
"""

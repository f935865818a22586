"""Ports for tests whose processes meet at one."""

import socket


def free_port():
    """Return a port that nobody listens at, which the system chooses: suites beside this one get others."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

"""A disk that is full, for the files of this process: the system refuses to let any grow beyond a few bytes."""

import resource
from contextlib import contextmanager


@contextmanager
def full_disk(room=0):
    """Let no file grow beyond ``room`` bytes; writing more is the error EFBIG, which a full disk's ENOSPC resembles.

    No rights and no disk of its own are needed for that, and libraries in C++ and Rust meet it as well.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

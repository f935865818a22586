"""An NPU of Ascend as pyACL gives it: one thread that owns its context, and calls whose status is checked.

pyACL is the module ``acl`` of CANN, found where CANN's ``set_env.sh`` was sourced. A context belongs to the thread that
made it, so everything that is done with a device runs in one thread, `AscendDevice.run`. Names and numbers are those of
CANN 8.0's reference of pyACL.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from importlib import import_module
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from ehm.errors import BackendError
from ehm.storage.reading import shorten

__all__ = ["AscendDevice", "close_devices", "open_device"]

_SUCCESS = 0
"""The status of every function of pyACL that did what it was asked for."""
_INITIALISED_BEFORE = 100002
"""The status of ``acl.init`` if another library, such as torch-npu, has called it in this process."""
_RUNS_ON_DEVICE = 0
"""The run mode of a program that runs on the processor of the device itself, whose memory is the device's."""
# pyACL's numbers of the directions of a copy
_HOST_TO_DEVICE = 1
_DEVICE_TO_HOST = 2
_DEVICE_TO_DEVICE = 3
_MESSAGE = 300
"""Most characters of a message of CANN that are passed on."""

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)


class AscendDevice:
    """The NPU number ``number``, with a context of its own; raises BackendError if pyACL or the NPU is not there.

    ``chip`` is its name as ATC knows it (``Ascend910B3``). `call`, `ask` and the copies are for the device's thread.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._acl = _import_acl()
        self._resources = ExitStack()
        self._releases: dict[int, Callable[[], None]] = {}
        self._tasks: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        # it must not keep the interpreter from ending: what it holds is released at exit
        self._thread = Thread(target=self._work, name=f"ascend-{number}", daemon=True)
        self._thread.start()
        try:
            self.run(self._begin)
        except BackendError as error:
            self._stop()
            raise BackendError(f"--device om:{number}: the NPU cannot be opened: {error}") from None

    def run(self, function: Callable[[], _T]) -> _T:
        """Run a function on the device's thread and return what it returns, or raise what it raises."""
        future: Future[_T] = Future()
        self._tasks.put((function, future))
        return future.result()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call ``acl.NAME``, which returns a status, alone or behind a value; return the value.

        Raises BackendError with the status if it is not that of success.
        """
        returned = self.ask(name, *arguments)
        value, status = returned if isinstance(returned, tuple) else (None, returned)
        if status != _SUCCESS:
            raise self._describe_failure(name, status)
        return value

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call ``acl.NAME``, and return all that it returns."""
        function = self._acl
        for part in name.split("."):
            function = getattr(function, part, None)
        if function is None:
            raise BackendError(f"pyACL here has no acl.{name}; ehm needs that of CANN 8.0 or later")
        return function(*arguments)

    def copy_to_device(self, target: int, capacity: int, source: int, size: int) -> None:
        """Copy ``size`` bytes from an address of the host to ``target``, which has room for ``capacity``."""
        self.call("rt.memcpy", target, capacity, source, size, self._to_device)

    def copy_to_host(self, target: int, source: int, size: int) -> None:
        """Copy ``size`` bytes from an address of the device to ``target``, which has as much room."""
        self.call("rt.memcpy", target, size, source, size, self._to_host)

    def keep(self, key: int, release: Callable[[], None]) -> None:
        """Have ``release`` called on the device's thread before the device is closed, unless `drop` comes first."""
        self._releases[key] = release

    def drop(self, key: int) -> None:
        """Release what was kept under ``key``, at some time soon: this does not wait, and may be called anywhere."""
        self._tasks.put((lambda: self._release(key), Future()))

    def close(self) -> None:
        """Release whatever is kept, the context and the device, and end the thread."""
        self.run(self._end)
        self._stop()

    def _begin(self) -> None:
        status = self.ask("init")
        if status == _SUCCESS:
            _INITIALISED_HERE.append(self._acl)
        elif status != _INITIALISED_BEFORE:
            raise self._describe_failure("init", status)
        with ExitStack() as resources:
            self.call("rt.set_device", self.number)
            resources.callback(self.call, "rt.reset_device", self.number)
            context = self.call("rt.create_context", self.number)
            resources.callback(self.call, "rt.destroy_context", context)
            on_device = self.call("rt.get_run_mode") == _RUNS_ON_DEVICE
            self._to_device = _DEVICE_TO_DEVICE if on_device else _HOST_TO_DEVICE
            self._to_host = _DEVICE_TO_DEVICE if on_device else _DEVICE_TO_HOST
            self.chip: str = self.ask("get_soc_name")
            self._resources = resources.pop_all()

    def _end(self) -> None:
        for key in list(self._releases):
            self._release(key)
        self._resources.close()

    def _release(self, key: int) -> None:
        release = self._releases.pop(key, None)
        if release is None:
            return
        try:
            release()
        except BackendError as error:  # nobody waits for it, and the rest has to be released too
            _LOG.warning("om:%d: memory of the NPU could not be released: %s", self.number, error)

    def _stop(self) -> None:
        self._tasks.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            function, future = task
            try:
                future.set_result(function())
            except BaseException as error:  # it belongs to the thread that waits
                future.set_exception(error)
            # neither images nor answers are held until the next task comes
            del task, function, future

    def _describe_failure(self, name: str, status: int) -> BackendError:
        """Return the error of a function that did not succeed, with CANN's own message if there is one."""
        # older versions of pyACL lack it
        read = getattr(self._acl, "get_recent_err_msg", None)
        message = shorten(read() or "", _MESSAGE) if read else ""
        return BackendError(f"acl.{name} failed with the code {status}" + (f" ({message})" if message else ""))


_DEVICES: dict[int, AscendDevice] = {}
"""The devices that this process has opened. They stay open until it ends, because opening takes seconds."""
_OPENING = Lock()
_INITIALISED_HERE: list[Any] = []
"""The module ``acl``, if it was initialised here and therefore is finalised here."""


def open_device(number: int) -> AscendDevice:
    """Return the NPU number ``number``, opened at the first call; raises BackendError if it cannot be opened."""
    with _OPENING:
        if number not in _DEVICES:
            _DEVICES[number] = AscendDevice(number)
        return _DEVICES[number]


@atexit.register
def close_devices() -> None:
    """Close all devices that are open, and finalise pyACL if it was initialised here."""
    with _OPENING:
        for device in _DEVICES.values():
            try:
                device.close()
            except BackendError as error:  # the process ends, and the driver takes back what it had
                _LOG.warning("om:%d: the NPU could not be closed: %s", device.number, error)
        _DEVICES.clear()
        while _INITIALISED_HERE:
            _INITIALISED_HERE.pop().finalize()


def _import_acl() -> Any:
    try:
        return import_module("acl")
    except ImportError as error:
        raise BackendError(
            f"--device om: pyACL cannot be imported ({error}); it comes with CANN: source its set_env.sh in this shell"
        ) from None

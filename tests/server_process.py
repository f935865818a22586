"""``ehm serve`` as a process of its own, and clients that keep it busy."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time

from server_requests import encode_tensor
from serving import picture

LIMIT = 60
"""Seconds that a test waits for the server at most."""


class ServerProcess:
    """A server in a process of its own, whose log is read as it is written.

    ``before`` is Python that the process runs before the command.
    """

    def __init__(self, *arguments, before=""):
        code = f"import sys\nfrom ehm.cli import main\n{before}\nsys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-W", "error", "-c", code, "serve", "--drain-delay", "0", *map(str, arguments)]
        self.process = subprocess.Popen([*command, "--port", "0", "--log", "json"], stderr=subprocess.PIPE, text=True)
        self.lines = []
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def _read_log(self):
        for line in self.process.stderr:
            self.lines.append(json.loads(line))

    @property
    def address(self):
        return self.wait_for_message("ready at")["message"].split()[2].removeprefix("http://").removesuffix(":")

    def wait_for_message(self, text, after=0):
        """Return the first line from the ``after``-th on whose message has that text."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            found = [line for line in self.lines[after:] if text in line["message"]]
            if found:
                return found[0]
            assert self.process.poll() is None, self.lines
            time.sleep(0.01)
        raise AssertionError(self.lines)

    def wait_for_answers(self, count):
        """Wait until so many more requests were answered with 200."""
        end = time.monotonic() + LIMIT
        first = len(self.lines)
        while len([line for line in self.lines[first:] if line.get("status") == 200]) < count:
            assert time.monotonic() < end
            time.sleep(0.01)

    def stop(self, number=signal.SIGTERM):
        """Send a signal; returns the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        status = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        self.process.stderr.close()
        return status

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.wait()


class Client(threading.Thread):
    """A client that asks again and again on one connection, and keeps what came of each request."""

    def __init__(self, address, seed, stop):
        super().__init__()
        self.address = address
        self.stop = stop
        self.answers = []
        self.lost_connections = 0
        images, self.means = picture(seed, batch=1 + seed % 3)
        self.body = encode_tensor(images, outputs=[{"name": "features"}])

    def run(self):
        connection = http.client.HTTPConnection(self.address, timeout=30)
        while not self.stop.is_set():
            try:
                connection.request("POST", "/v2/models/m/infer", self.body)
                answer = connection.getresponse()
                self.answers.append((answer.status, json.loads(answer.read()), answer.headers["x-request-id"]))
            except (OSError, http.client.HTTPException):
                self.lost_connections += 1
                connection.close()
                if self.lost_connections > 1:  # the server is gone
                    break
        connection.close()


def start_clients(address, count=6):
    """Return clients that ask until the event that is returned, too, is set."""
    stop = threading.Event()
    clients = [Client(address, seed, stop) for seed in range(count)]
    for client in clients:
        client.start()
    return clients, stop


def join_clients(clients):
    for client in clients:
        client.join(LIMIT)
        assert not client.is_alive()

"""Two processes that stay, and run one command of ``ehm`` after another together, as torchrun's would.

Starting torchrun for a command costs three imports of torch, more than a tiny run itself. test_distributed.py still
starts one command by torchrun.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile

from ports import free_port

SIZE = 2


class ProcessPair:
    """The two processes; what they share is torch's process group, which they join at their first command."""

    def __init__(self):
        port = str(free_port())
        self._processes = []
        # a file, because a pipe that nobody reads would hold the process up once it is full
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it is open as long as the processes run
        for rank in range(SIZE):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(SIZE),
                "LOCAL_WORLD_SIZE": str(SIZE),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }
            line = [sys.executable, __file__]
            process = subprocess.Popen(
                line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
            self._processes.append(process)

    def run(self, *arguments, status=0):
        """Run ``ehm ARGUMENTS...`` in both processes, which have to end with ``status``; return what they printed."""
        for process in self._processes:
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
        printed = []
        statuses = []
        for process in self._processes:
            line = process.stdout.readline()
            assert line, f"a process ended: {self._read_errors()}"
            answer = json.loads(line)
            printed.append(answer["printed"])
            statuses.append(answer["status"])
        assert statuses == [status] * SIZE, "\n".join(printed)
        return "".join(printed)

    def close(self):
        """Let both processes leave the group and end."""
        for process in self._processes:
            process.stdin.close()
        for process in self._processes:
            assert process.wait(timeout=60) == 0, self._read_errors()
            process.stdout.close()
        self._errors.close()

    def _read_errors(self):
        self._errors.seek(0)
        return self._errors.read()


def serve_commands():
    """Run the command of each line of standard input, and answer with its status and what it printed."""
    from ehm.cli import main

    answers = sys.stdout
    for line in sys.stdin:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = main(json.loads(line))
            except SystemExit as end:
                status = end.code
        print(json.dumps({"status": status, "printed": said.getvalue()}), file=answers, flush=True)


if __name__ == "__main__":
    serve_commands()

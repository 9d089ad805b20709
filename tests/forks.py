"""Processes that begin with everything imported: a server imports it once, and forks.

To import TensorFlow, Keras and what they import takes a process longer than to train a tiny
network. `Server` asks a process that has done so, and has computed nothing yet, for copies of
itself, which go on like the program in a process of its own.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What Keras and JAX read when they are imported; servers differ in these.
READ_EARLY = ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS", "JAX_PLATFORMS")

# What the program imports sooner or later.
IMPORTED = (
    "matplotlib.pyplot",
    "sklearn.datasets",
    "tensorboard.summary.writer.event_file_writer",
    "tests.train.tiny",
    "repq_tf.train.main",
    "repq_tf.train.pipeline",
)
LEGACY = ("repq_tf.tfmot",)


class Fork:
    """A process that a server has forked; its methods are those of `subprocess.Popen`.

    Args:
        pid: Its number.
        status: The file into which the server writes how it has ended.
    """

    def __init__(self, pid, status):
        self.pid = pid
        self.returncode = None
        self._status = status

    def poll(self):
        """Returns its exit status, or `None` while it runs."""
        if self.returncode is None:
            with contextlib.suppress(FileNotFoundError):
                self.returncode = int(self._status.read_text())
        return self.returncode

    def wait(self, timeout=900):
        """Returns its exit status as soon as it has ended."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, f"process {self.pid} still runs after {timeout} s"
            time.sleep(0.01)
        return self.returncode

    def kill(self):
        """Kills it, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Server:
    """A process that forks.

    Args:
        environment: Its environment, and in what is `READ_EARLY` that of its forks.
    """

    def __init__(self, environment):
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", self._folder.name],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, code, arguments, environment, output, errors):
        """Starts a process.

        Args:
            code: The Python code that it runs.
            arguments: Its `sys.argv[1:]`.
            environment: Its environment.
            output: The open file that becomes its stdout.
            errors: The one that becomes its stderr.
        """
        order = {
            "code": code,
            "arguments": arguments,
            "environment": environment,
            "files": [f"/proc/{os.getpid()}/fd/{f.fileno()}" for f in (output, errors)],
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server has ended; see its messages on stderr"
        pid = int(answer)
        return Fork(pid, Path(self._folder.name, str(pid)))

    def stop(self):
        """Ends the server."""
        self._process.communicate()
        self._folder.cleanup()


@functools.cache
def _server(early):
    server = Server({**os.environ, **dict(early)})
    atexit.register(server.stop)
    return server


def start(code, arguments, environment, output, errors):
    """Starts a process, as `Server.start` does, from a server that this one keeps."""
    early = {name: environment[name] for name in READ_EARLY if name in environment}
    server = _server(tuple(sorted(early.items())))
    return server.start(code, arguments, environment, output, errors)


def run(code, *arguments, **changed):
    """Runs Python code in a fork and returns `(exit status, stdout, stderr)`.

    Args:
        code: The code.
        *arguments: Its `sys.argv[1:]`.
        **changed: What differs in its environment from that of this process.
    """
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", **changed}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = start(code, arguments, environment, output, errors)
        try:
            status = process.wait()
        finally:
            process.kill()
        return status, text(output), text(errors)


def text(file):
    """Returns all that was written to an open file."""
    file.seek(0)
    return file.read()


def serve(folder):
    """Forks for each line of stdin; writes how each fork has ended to a file of its number."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    legacy = os.environ.get("TF_USE_LEGACY_KERAS") == "1"
    for name in LEGACY + IMPORTED if legacy else IMPORTED:
        importlib.import_module(name)

    def bury(*_):
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                writing = Path(folder, f"{ended[0]}.writing")
                writing.write_text(str(os.waitstatus_to_exitcode(ended[1])))
                writing.rename(Path(folder, str(ended[0])))

    signal.signal(signal.SIGCHLD, bury)
    for line in sys.stdin:
        order = json.loads(line)
        if pid := os.fork():
            print(pid, file=answers, flush=True)
        else:
            answers.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become(**order)
            exec(order["code"], {"__name__": "__main__"})
            return


def _become(code, arguments, environment, files):
    """Gives this process what the process that was ordered begins with."""
    for number, path in enumerate((os.devnull, *files)):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]


if __name__ == "__main__":
    serve(sys.argv[1])

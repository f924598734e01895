"""Commands as real processes that do not import torch again: they are forked from one that has done so.

The imports of a command take eight seconds of a core, most of what a short test of a command takes. Run as a script,
this file imports what commands import, and forks a process for each request; it has neither threads nor tensors.
Imported, it starts that server once in a test process. What an environment variable decides during an import is decided
already: a test of such a variable starts a process of its own.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache, partial

IMPORTS = (
    "matplotlib.figure", "pyarrow.parquet", "pytorch_lightning", "robustfg.cli.assemble", "robustfg.evaluation",
    "robustfg.reporting", "scipy.stats", "sklearn.datasets", "sklearn.metrics", "timm", "torchmetrics", "torchvision",
)  # fmt: skip
COMMANDS = ("robustfg.train", "robustfg.evaluate", "robustfg.predict")


class Process(subprocess.Popen):
    """A process that the server has forked: the system reports its end to the server, which passes it on."""

    def __init__(self, args, pid, pipes, server):
        self.args, self.pid, self.server, self.returncode = args, pid, server, None
        (_, stdin), (stdout, _), (stderr, _) = pipes
        self.stdin, self.stdout, self.stderr = os.fdopen(stdin, "w"), os.fdopen(stdout), os.fdopen(stderr)
        self.text_mode, self.encoding, self.errors = True, None, None
        self._child_created, self._communication_started, self._input = True, False, None
        self._waitpid_lock, self._sigint_wait_secs = threading.Lock(), 0.25

    def _internal_poll(self, *_, **__):
        if self.returncode is None:
            self.returncode = self.server.ended().get(self.pid)
        return self.returncode

    def _wait(self, timeout):
        end = None if timeout is None else time.monotonic() + timeout
        while self._internal_poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return self.returncode


class Server:
    """The process that forks, as seen by the tests."""

    def __init__(self):
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.returncodes = {}
        subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()

    def start(self, module, words, **how):
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        socket.send_fds(self.socket, [json.dumps({"module": module, "words": words, **how}).encode()], theirs)
        for one in theirs:
            os.close(one)
        while "pid" not in (answer := json.loads(self.socket.recv(1000))):
            self._note(answer)
        return Process([module, *words], answer["pid"], pipes, self)

    def ended(self):
        while selected(self.socket):
            self._note(json.loads(self.socket.recv(1000)))
        return self.returncodes

    def _note(self, answer):
        self.returncodes |= {int(pid): code for pid, code in answer.items()}


def selected(*sockets, timeout=0):
    with selectors.DefaultSelector() as selector:
        for one in sockets:
            selector.register(one, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(timeout)]


@cache
def server():
    return Server()


def start(module, *words, cwd=None, start_new_session=False, environment=None):
    """The process of `python -m module words`, or of `python file.py words`, with its output as text."""
    environment = {**os.environ, **(environment or {})}
    return server().start(
        module, list(words), cwd=str(cwd or os.getcwd()), environment=environment, new_session=start_new_session
    )


def run(module, *words, given="", **options):
    """As ``start``, when it has ended; ``given`` is its input."""
    process = start(module, *words, **options)
    out, err = process.communicate(given)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def forked(requests):
    """What the process that returns from here shall be; the server stays inside until the tests end."""
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    while True:
        ready = selected(requests, woken, timeout=None)
        if woken in ready:
            woken.recv(100)
            while (ended := reaped()) is not None:
                requests.send(json.dumps({ended[0]: os.waitstatus_to_exitcode(ended[1])}).encode())
        if requests in ready:
            asked, given, _, _ = socket.recv_fds(requests, 1_000_000, 3)
            if not asked:
                sys.exit()
            if (pid := os.fork()) == 0:
                break
            for one in given:
                os.close(one)
            requests.send(json.dumps({"pid": pid}).encode())
    signal.set_wakeup_fd(-1)
    for one in (requests, woken, wakes):
        one.close()
    for number, one in enumerate(given):
        os.dup2(one, number)
        os.close(one)
    return json.loads(asked)


def reaped():
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


if __name__ == "__main__":
    import importlib
    import runpy

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in IMPORTS:
        importlib.import_module(name)
    for name in COMMANDS:  # what they import stays; they themselves are to run as scripts
        importlib.import_module(name)
        del sys.modules[name]
    asked = forked(socket.socket(fileno=int(sys.argv[1])))
    if asked["new_session"]:
        os.setsid()
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)  # the server's may be files
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    sys.argv[1:] = asked["words"]
    program, paths = asked["module"], asked["environment"].get("PYTHONPATH", "").split(os.pathsep)
    script = program.endswith(".py")
    own = os.path.dirname(program) if script else asked["cwd"]
    sys.path[:0] = [own, *(one for one in paths if one and one not in sys.path)]
    (runpy.run_path if script else partial(runpy.run_module, alter_sys=True))(program, run_name="__main__")

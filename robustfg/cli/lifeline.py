"""All processes of a training or evaluation end within seconds where one of them has died."""

import contextlib
import os
import secrets
import selectors
import socket
import threading
import time
from typing import cast

import pytorch_lightning as pl

from robustfg.cli.processes import end_now, starter
from robustfg.core.errors import UserError

GRACE = 3.0
"""Seconds in which a process may end with words of its own once another one has met an error."""
_DONE, _FAILED, _SAID = b"d", b"f", b"s"
"""Last words: all is well; an exception ends this process; the death of another one does, which has been said."""
_inherited: set[socket.socket] = set()


def _close_inherited() -> None:
    """A loader process holds no connection, which would outlive its parent."""
    for connection in _inherited:
        connection.close()


os.register_at_fork(after_in_child=_close_inherited)


class Lifeline(pl.Callback):
    """A connection from every rank to rank 0, which the system closes when a process dies, however it dies.

    Collectives alone do not show it: a rank that attacks a batch, or waits with NCCL, notices after minutes or hours.

    Args:
        advice: how to go on, said when this process ends since another one has.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.peers: dict[int, socket.socket] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        self.world, self.leaving, self.lost = trainer.world_size, False, threading.Event()
        starter().released = False
        self.peers = self._connected(trainer)
        _inherited.update(self.peers.values())
        threading.Thread(target=self._watch, args=(dict(self.peers),), daemon=True, name="lifeline").start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._leave(_DONE)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        broken = isinstance(exception, RuntimeError | OSError) and not isinstance(exception, UserError)
        if self.peers and broken and self.lost.wait(GRACE):  # the other one's death is the cause, and is said
            time.sleep(2 * GRACE)
        self._leave(_FAILED)

    def _connected(self, trainer: pl.Trainer) -> dict[int, socket.socket]:
        """Connections by rank: to all others on rank 0, to rank 0 elsewhere."""
        first = trainer.is_global_zero
        host = "127.0.0.1" if trainer.num_nodes == 1 else ""
        server = socket.create_server((host, 0), backlog=trainer.world_size) if first else None
        offered = (server.getsockname()[1], secrets.token_hex(16)) if server else None
        port, token = cast(tuple[int, str], trainer.strategy.broadcast(offered))
        if server is None:
            connection = socket.create_connection((host or os.environ["MASTER_ADDR"], port), timeout=60)
            connection.settimeout(None)
            connection.sendall(f"{token} {trainer.global_rank:8d}".encode())
            return {0: connection}
        peers: dict[int, socket.socket] = {}
        with server:
            server.settimeout(60)
            while len(peers) < trainer.world_size - 1:
                connection, _ = server.accept()
                connection.settimeout(10)
                words = connection.recv(len(token) + 9, socket.MSG_WAITALL).decode(errors="replace").split()
                if len(words) == 2 and secrets.compare_digest(words[0], token):
                    connection.settimeout(None)
                    peers[int(words[1])] = connection
                else:
                    connection.close()
        return peers

    def _leave(self, word: bytes) -> None:
        if not self.peers:
            return
        self.leaving = starter().released = True
        for connection in self.peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(word)
                connection.shutdown(socket.SHUT_WR)
        _inherited.difference_update(self.peers.values())
        self.peers = {}

    def _watch(self, peers: dict[int, socket.socket]) -> None:
        """Reads the last word of every peer; ends the process where one has died."""
        with selectors.DefaultSelector() as selector:
            for rank, connection in peers.items():
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        word = key.fileobj.recv(1)  # type: ignore[union-attr]
                    except OSError:
                        word = b""
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    if word != _DONE:
                        self._end(key.data, word)

    def _end(self, rank: int, word: bytes) -> None:
        self.lost.set()
        ends = time.monotonic() + (GRACE if word == _FAILED else 0)
        while not self.leaving and time.monotonic() < ends:
            time.sleep(0.05)
        if self.leaving:
            return
        for connection in self.peers.values():
            with contextlib.suppress(OSError):
                connection.sendall(_SAID)
        what = "has ended early" if word == _FAILED else "has died"
        said = f"process {rank} of {self.world} {what}, so all end; {self.advice}"
        end_now(None if word == _SAID else said)

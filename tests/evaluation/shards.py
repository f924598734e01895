"""Several processes played by threads that meet wherever something is gathered."""

import threading
from concurrent.futures import ThreadPoolExecutor

RANK = threading.local()


def on_ranks(monkeypatch, modules, world, work):
    """What ``work(rank)`` returns on every rank, with ``gathered`` replaced in the given modules."""
    meeting, shared = threading.Barrier(world, timeout=60), [None] * world

    def gathered(value):
        shared[RANK.number] = value
        meeting.wait()
        values = list(shared)
        meeting.wait()
        return values

    def run(rank):
        RANK.number = rank
        try:
            return work(rank)
        except BaseException:
            meeting.abort()
            raise

    with monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(module, "gathered", gathered)
        with ThreadPoolExecutor(world) as pool:
            return list(pool.map(run, range(world)))

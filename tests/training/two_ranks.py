"""Running a script as two processes that find each other: python script rank port folder."""

import os
import socket
import sys
from pathlib import Path

import torch
import warm
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy


def found_by_two(script, folder):
    """What each rank saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = str(Path(__file__).with_name(script))
    processes = [warm.start(place, str(rank), str(port), str(folder)) for rank in range(2)]
    try:
        outputs = ["\n".join(process.communicate()) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


def joined():
    """In such a script: rank and folder, once the environment says where the other is."""
    rank, port, folder = *map(int, sys.argv[1:3]), sys.argv[3]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    return rank, Path(folder)


def strategy():
    return DDPStrategy(process_group_backend="gloo", cluster_environment=LightningEnvironment())

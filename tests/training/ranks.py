"""Trains every regime as one of two processes: python ranks.py rank port folder."""

import os
import sys

import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from small_classifiers import regimes, results

rank, port, folder = *map(int, sys.argv[1:3]), sys.argv[3]
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
torch.set_num_threads(1)
found = {}
for name, regime in regimes(ramp_epochs=0.5).items():
    strategy = DDPStrategy(process_group_backend="gloo", cluster_environment=LightningEnvironment())
    found[name] = results(regime, batch_size=4, strategy=strategy, devices=2)
torch.save(found, f"{folder}/{rank}.pt")

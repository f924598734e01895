"""Trains every regime as one of two processes: python ranks.py rank port folder."""

import torch
from small_classifiers import regimes, results
from two_ranks import joined, strategy

rank, folder = joined()
found = {}
for name, regime in regimes(ramp_epochs=0.5).items():
    found[name] = results(regime, batch_size=4, strategy=strategy(), devices=2)
torch.save(found, folder / f"{rank}.pt")

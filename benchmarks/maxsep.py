"""The maximal-separation head beside a plain transcription of its formulas, and its training step beside softmax."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import median_ratios, peak_bytes
from torch import Tensor

from robustfg.losses import LossModule, MaximalSeparation, Softmax
from robustfg.models import Backbone

BATCH, CLASSES, PER_CLASS, DEPTH, SIDE = 32, 200, 10, 128, 7
CHANNELS = 512  # VGG-16, the paper's backbone
MOST_TIME, MOST_MEMORY, MOST_DIFFERENCE = 0.5, 0.5, 1e-4
STEP_BATCH, STEP_IMAGE, MOST_STEP = 8, 224, 1.15


def transcribed(module: MaximalSeparation, feature_map: Tensor, label: Tensor) -> Tensor:
    """The released loss line by line: distances by convolutions, nearest prototypes by two masks of full size."""
    features, head = feature_map.relu(), module.prototype
    agnostic, specific = module.attention.agnostic, module.attention.specific
    product = F.conv2d(features, agnostic.weight, agnostic.bias) * F.conv2d(features, specific.weight, specific.bias)
    attention = product.relu().max(1, keepdim=True).values
    attention = attention / attention.amax((2, 3), keepdim=True)
    latent = head.add_on(feature_map)
    prototypes = head.prototypes.vectors[:, :, None, None]
    squared = F.conv2d(latent**2, torch.ones_like(prototypes))
    distance = F.relu(squared - 2 * F.conv2d(latent, prototypes) + (prototypes**2).sum((1, 2, 3)).view(-1, 1, 1))
    similarity = torch.log((distance + 1) / (distance + head.epsilon))
    evidence = F.max_pool2d(attention * similarity, SIDE).flatten(1)
    mask = (head.prototypes.classes == label[:, None])[:, :, None, None].to(distance.dtype)
    own = DEPTH - ((DEPTH - distance) * mask).max(1).values
    other = DEPTH - ((DEPTH - distance) * (1 - mask)).max(1).values
    weight, own_class = attention.mean(0), head.own().to(distance.dtype)
    return (
        F.cross_entropy(head.last_layer(evidence), label)
        + F.cross_entropy(product.mean((2, 3)), label)
        + 100 * (weight * own).mean()
        - 0.08 * (weight * other).mean()
        + 1e-4 * (head.last_layer.weight * (1 - own_class)).abs().sum()
    )


def head(device: str) -> bool:
    """Prints the head's ratios; whether they are within the limits."""
    torch.manual_seed(0)
    module = MaximalSeparation(
        channels=CHANNELS, num_classes=CLASSES, prototypes_per_class=PER_CLASS, prototype_depth=DEPTH,
        attention_over_batch=True, true_class_attention=False, detach_attention=False, clamp_prototypes=False,
    ).to(device).eval()  # fmt: skip
    feature_map = torch.randn(BATCH, CHANNELS, SIDE, SIDE, device=device).requires_grad_()
    label = torch.randint(CLASSES, (BATCH,), device=device)
    inputs = [feature_map, *module.parameters()]

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(module.loss(module(feature_map), label)["loss"], inputs)

    def plain() -> tuple[Tensor, ...]:
        return torch.autograd.grad(transcribed(module, feature_map, label), inputs)

    pairs = zip(ours(), plain(), strict=True)
    difference = max(((mine - theirs).norm() / theirs.norm()).item() for mine, theirs in pairs)
    time = median_ratios({"plain": plain, "ours": ours}, "plain", device, rounds=9, repeats=2)["ours"]
    memory = peak_bytes(ours, device) / peak_bytes(plain, device)
    print(f"{device}, B {BATCH}, K {CLASSES}, {PER_CLASS} per class, D {DEPTH}, {SIDE}x{SIDE}, forward + backward")
    print(f"maxsep head / formulas: time                {time:.2f}  (limit {MOST_TIME})")
    print(f"maxsep head / formulas: peak memory         {memory:.2f}  (limit {MOST_MEMORY})")
    print(f"maxsep head - formulas: gradients, relative {difference:.0e}  (limit {MOST_DIFFERENCE:.0e})")
    return time <= MOST_TIME and memory <= MOST_MEMORY and difference <= MOST_DIFFERENCE


def step(device: str) -> bool:
    """Prints what a training step costs beside softmax's; whether that is within the limit."""
    torch.manual_seed(0)
    backbone = Backbone(name="resnet50", image_size=STEP_IMAGE).to(device).train()
    image = torch.rand(STEP_BATCH, 3, STEP_IMAGE, STEP_IMAGE, device=device)
    label = torch.randint(CLASSES, (STEP_BATCH,), device=device)
    sizes = {"channels": backbone.channels, "num_classes": CLASSES}
    losses: dict[str, LossModule] = {"softmax": Softmax(**sizes), "maxsep": MaximalSeparation(**sizes)}

    def work(name: str) -> Callable[[], None]:
        loss = losses[name].to(device).train()
        optimizer = torch.optim.Adam([*backbone.parameters(), *loss.parameters()], lr=0.0)

        def take() -> None:
            optimizer.zero_grad()
            loss.loss(loss(backbone(image)), label)["loss"].backward()
            optimizer.step()

        return take

    works = {name: work(name) for name in losses}
    ratio = median_ratios(works, "softmax", device, rounds=5, repeats=1)["maxsep"]
    print(f"{device}, ResNet-50, {STEP_IMAGE} px, batch {STEP_BATCH}, training step with Adam")
    print(f"maxsep / softmax: time {ratio:.2f}  (limit {MOST_STEP})")
    return ratio <= MOST_STEP


def main() -> None:
    """Prints all ratios and exits with an error over a limit."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    within = [head(device), step(device)]
    if not all(within):
        raise SystemExit("over the limit")


if __name__ == "__main__":
    main()

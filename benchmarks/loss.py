"""GM head against a linear layer with cross-entropy: forward + backward at (B 256, D 512, K 1000)."""

import torch
import torch.nn.functional as F
from timing import median_seconds, peak_bytes

from robustfg.losses import GaussianMixture

BATCH, DIM, CLASSES = 256, 512, 1000
MOST_TIME, MOST_MEMORY = 1.3, 1.5


def main() -> None:
    """Prints both sides' ratios and the limits they are held to."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    embedding = torch.randn(BATCH, DIM, 1, 1, device=device)
    label = torch.randint(CLASSES, (BATCH,), device=device)
    linear = torch.nn.Linear(DIM, CLASSES, device=device)
    mixture = GaussianMixture(channels=DIM, num_classes=CLASSES).to(device)

    def plain() -> None:
        feature = embedding.clone().requires_grad_()
        loss = F.cross_entropy(linear(feature.mean(dim=(2, 3))), label)
        torch.autograd.grad(loss, [feature, *linear.parameters()])

    def gaussian() -> None:
        feature = embedding.clone().requires_grad_()
        loss = mixture.loss(mixture(feature), label)["loss"]
        torch.autograd.grad(loss, [feature, *mixture.parameters()])

    seconds = median_seconds({"linear": plain, "gm": gaussian}, device)
    memory = {"linear": peak_bytes(plain, device), "gm": peak_bytes(gaussian, device)}
    print(f"{device}, B {BATCH}, D {DIM}, K {CLASSES}, forward + backward, GM head / linear + cross-entropy")
    time, space = seconds["gm"] / seconds["linear"], memory["gm"] / memory["linear"]
    print(f"time   {time:.2f}  (limit {MOST_TIME})")
    print(f"memory {space:.2f}  (limit {MOST_MEMORY})")
    if time > MOST_TIME or space > MOST_MEMORY:
        raise SystemExit("over the limit")


if __name__ == "__main__":
    main()

"""Random numbers as a function of what they are for, never of batch, order, rank or device."""

import hashlib

import numpy as np
import torch
from torch import Tensor


def keyed_uniforms(count: int, index: Tensor, *key: int | str) -> Tensor:
    """Uniform numbers in [0, 1) for every sample.

    NumPy's Philox is used for its raw stream, the part that NumPy promises never to change.

    Args:
        count: how many numbers a sample gets.
        index: ``(B,)`` the samples' ids.
        key: what else the numbers depend on: seed, attack, draw, restart.

    Returns:
        ``(B, count)`` float32 on the CPU, multiples of 2^-24.
    """
    rows = np.empty((len(index), count), np.float32)
    for row, sample in zip(rows, index.tolist(), strict=True):
        digest = hashlib.blake2b("/".join(map(str, (*key, sample))).encode(), digest_size=16).digest()
        generator = np.random.Philox(key=np.frombuffer(digest, "<u8"))
        words = generator.random_raw((count + 1) // 2).astype("<u8").view("<u4")[:count]
        np.multiply(words >> 8, np.float32(2**-24), out=row, casting="unsafe")
    return torch.from_numpy(rows)


def keyed_normals(count: int, index: Tensor, *key: int | str) -> Tensor:
    """Standard normal numbers for every sample (Box-Muller), ``(B, count)`` float32 on the CPU."""
    half = (count + 1) // 2
    uniform = keyed_uniforms(2 * half, index, *key).double()
    radius = torch.sqrt(-2 * torch.log1p(-uniform[:, :half]))
    angle = 2 * torch.pi * uniform[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count].float()

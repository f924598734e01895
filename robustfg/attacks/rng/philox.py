"""Random numbers as a function of what they are for, never of batch, order, rank or device.

The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") in integer torch
operations: the same words on every device. The key is a hash of the purpose, the counter holds the sample's id.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def keyed_uniforms(count: int, index: Tensor, *key: int | str) -> Tensor:
    """Uniform numbers in [0, 1) for every sample.

    Args:
        count: how many numbers a sample gets.
        index: ``(B,)`` the samples' ids.
        key: what else the numbers depend on: seed, attack, draw, restart, step.

    Returns:
        ``(B, count)`` float32 on the device of ``index``, multiples of 2^-24.
    """
    words = _words(count, index, key)
    return (words >> 8).to(torch.float32).mul_(2**-24)


def keyed_normals(count: int, index: Tensor, *key: int | str) -> Tensor:
    """Standard normal numbers for every sample (Box-Muller in float64), ``(B, count)`` float32."""
    half = (count + 1) // 2
    uniform = keyed_uniforms(2 * half, index, *key).double()
    radius = torch.sqrt(-2 * torch.log1p(-uniform[:, :half]))
    angle = 2 * torch.pi * uniform[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count].float()


def keyed_integers(high: int | Tensor, count: int, index: Tensor, *key: int | str) -> Tensor:
    """Integers in [0, high) for every sample, ``(B, count)`` int64; ``high`` at most 2^20, or a tensor of such."""
    return (keyed_uniforms(count, index, *key).double() * high).long()


def keyed_signs(count: int, index: Tensor, *key: int | str) -> Tensor:
    """Signs -1 or 1 for every sample, ``(B, count)`` float32."""
    return (_words(count, index, key) >> 31).float().mul_(2).sub_(1)


@contextmanager
def keyed_generators(device: torch.device, *key: int | str) -> Iterator[None]:
    """Seeds torch's own generators by a key, for models with random parts, and gives them back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_generators(device, *key)
        yield


def seed_generators(device: torch.device, *key: int | str) -> None:
    """Seeds torch's own generators by a key. They draw other numbers on a GPU than on the CPU from the same seed."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") >> 1
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words for every counter; words are int64 tensors of values below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 wraps modulo 2^64, so the product's 64 bits are exact and its upper word is what the mask keeps.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        high0, high1 = (p0 >> 32).bitwise_and_(WORD), (p1 >> 32).bitwise_and_(WORD)
        c0, c1 = high1.bitwise_xor_(c1).bitwise_xor_(k0), p1.bitwise_and_(WORD)
        c2, c3 = high0.bitwise_xor_(c3).bitwise_xor_(k1), p0.bitwise_and_(WORD)
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def _words(count: int, index: Tensor, key: tuple[int | str, ...]) -> Tensor:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    key_words = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    blocks = (count + 3) // 4
    sample = index.long()[:, None].expand(-1, blocks)
    block = torch.arange(blocks, device=index.device).expand_as(sample)
    words = philox((block, sample & WORD, (sample >> 32) & WORD, torch.zeros_like(block)), key_words)
    return torch.stack(words, 2).flatten(1)[:, :count]

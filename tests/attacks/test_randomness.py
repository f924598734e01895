import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import stats

from robustfg.attacks.rng.philox import keyed_integers, keyed_normals, keyed_signs, keyed_uniforms, philox

pytestmark = pytest.mark.numeric

KEY = (3, "pgd", 7, 1)
INDEX = torch.tensor([5, 0, 123456, 2])


def philox_by_hand(counter, key):
    """Ten rounds of Philox4x32 in plain integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [second >> 32 ^ c[1] ^ k[0], second % 2**32, first >> 32 ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def words_by_hand(count, sample, *key):
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    halves = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]
    blocks = [philox_by_hand((block, sample % 2**32, sample >> 32, 0), halves) for block in range(count // 4 + 1)]
    return [word for block in blocks for word in block][:count]


def uniforms_by_hand(count, sample, *key):
    return [(word >> 8) / 2**24 for word in words_by_hand(count, sample, *key)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_the_generator_gives_the_known_answers_of_random123(counter, key, expected):
    words = philox(tuple(torch.tensor([word]) for word in counter), tuple(key))
    assert " ".join(f"{int(word):08x}" for word in words) == expected


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_uniforms_are_the_words_of_philox(count):
    index = torch.tensor([5, 0, 123456, 2**40 + 3])
    drawn = keyed_uniforms(count, index, *KEY)
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == [uniforms_by_hand(count, sample, *KEY) for sample in index.tolist()]


@pytest.mark.parametrize("high", [1, 2, 7, 1000])
def test_integers_and_signs_are_read_off_the_same_words(high):
    words = [words_by_hand(9, sample, *KEY) for sample in INDEX.tolist()]
    integers = keyed_integers(high, 9, INDEX, *KEY)
    assert integers.tolist() == [[int((word >> 8) / 2**24 * high) for word in row] for row in words]
    assert keyed_signs(9, INDEX, *KEY).tolist() == [[1.0 if word >> 31 else -1.0 for word in row] for row in words]


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_normals_are_the_box_muller_transform_of_the_uniforms(count):
    half = math.ceil(count / 2)
    drawn = keyed_normals(count, INDEX, *KEY)
    assert drawn.dtype == torch.float32
    for row, sample in zip(drawn.tolist(), INDEX.tolist(), strict=True):
        uniform = uniforms_by_hand(2 * half, sample, *KEY)
        radius = [math.sqrt(-2 * math.log(1 - value)) for value in uniform[:half]]
        angle = [2 * math.pi * value for value in uniform[half:]]
        cosines = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
        sines = [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
        assert row == pytest.approx((cosines + sines)[:count], abs=1e-6)


@pytest.mark.parametrize("draw", [keyed_uniforms, keyed_normals])
def test_numbers_depend_on_the_sample_and_not_on_its_batch(draw):
    together = draw(9, INDEX, *KEY)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(draw(9, INDEX[order], *KEY), together[order])
    assert torch.equal(torch.cat([draw(9, sample[None], *KEY) for sample in INDEX]), together)
    assert torch.equal(draw(9, torch.tensor([5, 5]), *KEY), together[[0, 0]])


@pytest.mark.parametrize("draw", [keyed_uniforms, keyed_normals])
def test_every_part_of_the_key_gives_other_numbers(draw):
    keys = [KEY, (4, "pgd", 7, 1), (3, "fgsm", 7, 1), (3, "pgd", 8, 1), (3, "pgd", 7, 2), (3, "pgd", 71)]
    rows = torch.cat([draw(9, INDEX, *key) for key in keys])
    assert len({tuple(row) for row in rows.tolist()}) == len(keys) * len(INDEX)
    assert len(set(rows[:, 0].tolist())) == len(keys) * len(INDEX)


def test_torch_and_numpy_global_generators_are_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    keyed_normals(9, INDEX, *KEY)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_uniforms_are_uniform_within_and_across_samples():
    drawn = keyed_uniforms(501, torch.arange(400), 0, "uniform").numpy()
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(drawn[0], "uniform").pvalue > 1e-3
    assert stats.kstest(drawn[:, -1], "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.2


def test_uniforms_are_multiples_of_two_to_the_minus_24_below_one():
    scaled = keyed_uniforms(1001, torch.arange(300), 0).double() * 2**24
    assert torch.equal(scaled, scaled.round())
    assert scaled.min() >= 0
    assert scaled.max() < 2**24
    assert (scaled % 2 == 1).double().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("count", [500, 501])
def test_normals_are_standard_normal(count):
    drawn = keyed_normals(count, torch.arange(400), 0, "normal").numpy()
    assert drawn.shape == (400, count)
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(drawn[:, -1], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, count // 2])[0, 1]) < 0.2


def test_fewer_uniforms_are_the_beginning_of_more():
    many = keyed_uniforms(12, INDEX, *KEY)
    for count in range(13):
        assert torch.equal(keyed_uniforms(count, INDEX, *KEY), many[:, :count])


def test_an_odd_count_of_normals_is_the_even_count_above_without_its_last():
    """Only these two agree: Box-Muller pairs the first half of the uniforms with the second."""
    assert torch.equal(keyed_normals(11, INDEX, *KEY), keyed_normals(12, INDEX, *KEY)[:, :11])
    assert not torch.equal(keyed_normals(10, INDEX, *KEY), keyed_normals(12, INDEX, *KEY)[:, :10])


def test_no_samples_give_no_rows():
    assert keyed_uniforms(4, torch.zeros(0, dtype=torch.int64), 0).shape == (0, 4)
    assert keyed_normals(3, torch.zeros(0, dtype=torch.int64), 0).shape == (0, 3)

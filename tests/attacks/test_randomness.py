import hashlib
import math

import numpy as np
import pytest
import torch
from scipy import stats

from robustfg.attacks.randomness import keyed_normals, keyed_uniforms

KEY = (3, "pgd", 7, 1)
INDEX = torch.tensor([5, 0, 123456, 2])


def uniforms_by_hand(count, sample, *key):
    """Each 64-bit word of the raw stream gives two numbers, the low half first, of which the top 24 bits count."""
    digest = hashlib.blake2b("/".join([*map(str, key), str(sample)]).encode(), digest_size=16).digest()
    words = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]
    generator = np.random.Philox(key=np.array(words, dtype=np.uint64))
    numbers = []
    while len(numbers) < count:
        word = int(generator.random_raw())
        numbers += [((word & 0xFFFFFFFF) >> 8) / 2**24, ((word >> 32) >> 8) / 2**24]
    return numbers[:count]


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_uniforms_are_the_raw_stream_of_philox(count):
    expected = [uniforms_by_hand(count, sample, *KEY) for sample in INDEX.tolist()]
    drawn = keyed_uniforms(count, INDEX, *KEY)
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == expected


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

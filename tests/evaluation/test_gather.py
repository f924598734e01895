from hypothesis import given
from hypothesis import strategies as st

from robustfg.evaluation.gather import claimed

RANKS = st.lists(st.dictionaries(st.integers(0, 8), st.integers(-3, 3).map(float)), min_size=1, max_size=4)


@given(RANKS)
def test_every_sample_is_claimed_once_with_its_worst_margin(margins):
    parts = [claimed(margins, rank) for rank in range(len(margins))]
    indices = [index for part in parts for index in part]
    assert sorted(indices) == sorted({index for found in margins for index in found})
    for rank, part in enumerate(parts):
        for index, margin in part.items():
            assert margin == margins[rank][index] == min(found[index] for found in margins if index in found)
            assert all(found.get(index, 9) > margin for found in margins[:rank])

import numpy as np
import pytest

from condseg.data.sampler import GlobalBatchSampler


def test_an_epoch_has_each_image_at_most_once_and_epochs_differ():
    sampler = GlobalBatchSampler(23, 4, seed=1)
    assert len(sampler) == 5
    epochs = [sampler.batches(epoch) for epoch in range(6)]
    for batches in epochs:
        assert batches.shape == (5, 4)
        assert len(np.unique(batches)) == 20
    assert len({batches.tobytes() for batches in epochs}) == 6
    assert np.array_equal(GlobalBatchSampler(23, 4, seed=1).batches(3), epochs[3])
    assert not np.array_equal(GlobalBatchSampler(23, 4, seed=2).batches(3), epochs[3])
    assert len(np.unique(epochs)) == 23


@pytest.mark.parametrize("start", [0, 1, 4, 5, 7, 13])
def test_it_starts_at_any_step(start):
    step = 0
    sampler = GlobalBatchSampler(23, 4, position=lambda: step)
    whole = []
    for step in range(0, 20, 5):  # noqa: B007 (the sampler reads it)
        whole += list(sampler)
    step = start
    for _ in range(2):  # iterating does not change the position
        assert list(sampler) == whole[start : start + 5]
    assert whole[start][0][1] == start // 5


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_global_batches(ranks):
    groups = np.arange(30) % 3 == 0
    alone = list(GlobalBatchSampler(30, 8, groups=groups))
    shares = [
        list(GlobalBatchSampler(30, 8, rank=r, world_size=ranks, groups=groups))
        for r in range(ranks)
    ]
    for step, batch in enumerate(alone):
        assert sorted(key for share in shares for key in share[step]) == sorted(batch)
        assert {len(share[step]) for share in shares} == {8 // ranks}


def test_groups_share_a_batch_only_in_the_rest():
    groups = np.random.default_rng(0).integers(0, 2, 103)
    sampler = GlobalBatchSampler(103, 8, groups=groups)
    batches = sampler.batches(0)
    assert batches.shape == (12, 8)
    assert len(np.unique(batches)) == 96
    mixed = [len(np.unique(groups[batch])) > 1 for batch in batches]
    assert sum(mixed) <= 1
    # The groups are spread over the epoch.
    first = groups[batches[:, 0]]
    assert 0 < first[:6].sum() < 6 or 0 < first[6:].sum() < 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "world_size": 2}, "batch_size is 3.*multiples of their number 2"),
        ({"batch_size": 11}, r"batch_size is 11; allowed is 1\.\.10"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(10, **options)

"""The stream of batches that training draws from."""

import torch

from gemlens.train.stream import shuffled_batches


def test_shuffled_batches_lose_nothing_and_mix():
    stream = torch.arange(1000.0).view(-1, 1).split(70)
    batches = list(shuffled_batches(stream, batch=50, buffer=400, seed=1))
    assert all(len(batch) == 50 for batch in batches)
    values = torch.cat(batches).flatten()
    assert sorted(values.tolist()) == list(range(1000))
    assert (values.diff().abs() == 1).float().mean() < 0.05

"""Activations as a stream of shuffled batches: nothing lost, sites kept together, taken up again to the bit."""

import itertools

import pytest
import torch

from gemlens.errors import InputError
from gemlens.lm.stream import activation_stream
from gemlens.sites import parse_site
from gemlens.train.stream import ShuffledStream, harvest
from tiny import HIDDEN, some_tokens

A, B = parse_site("resid_post.2"), parse_site("attn_out.4")


def rows(count=200, length=12):
    return iter(some_tokens(length, batch=count).numpy())


def numbered(tokens=1000, chunk=70):
    """A source whose activations say which token they are of."""
    x = torch.arange(float(tokens)).view(-1, 1)

    def source(first):
        source.asked.append(first)
        return ({A: part, B: part.repeat(1, 3) + 0.5} for part in x.split(chunk)[first:])

    source.asked = []
    return source


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[site], other[site]) for site in one)


def test_two_sites_in_one_pass_are_two_passes(model):
    both = list(activation_stream(model, rows(50), [A, B], together=16))
    for site in (A, B):
        alone = list(activation_stream(model, rows(50), [site], together=16))
        assert [set(chunk) for chunk in alone] == [{site}] * 4
        for one, other in zip(both, alone, strict=True):
            assert torch.equal(one[site], other[site])


def test_bos_is_left_out(model):
    tokens = some_tokens(12, batch=3)
    with torch.no_grad():
        hidden = model.backbone(tokens, output_hidden_states=True).hidden_states[A.layer + 1]
    (chunk,) = activation_stream(model, iter(tokens.numpy()), [A])
    torch.testing.assert_close(chunk[A], hidden[:, 1:].reshape(-1, HIDDEN))


def test_batches_lose_nothing_and_mix():
    batches = list(ShuffledStream(numbered(), batch=50, buffer=400, seed=1))
    assert all(batch[A].shape == (50, 1) and batch[B].shape == (50, 3) for batch in batches)
    values = torch.cat([batch[A] for batch in batches]).flatten()
    assert sorted(values.tolist()) == list(range(1000))
    assert (values.diff().abs() == 1).float().mean() < 0.05


def test_sites_keep_together():
    for batch in ShuffledStream(numbered(), batch=50, buffer=300):
        assert torch.equal(batch[B], batch[A].repeat(1, 3) + 0.5)


def test_half_of_a_full_buffer_is_given_out_before_more_is_read():
    source = numbered(1000, chunk=10)
    read = []
    stream = ShuffledStream(lambda first: (read.append(1) or chunk for chunk in source(first)), batch=20, buffer=200)
    given = iter(stream)
    counts = [next(given) and len(read) for _ in range(11)]
    assert counts == [20] * 5 + [30] * 5 + [40]


@pytest.mark.parametrize(("tokens", "batch", "buffer"), [(10, 20, 40), (0, 5, 5), (39, 20, 40)])
def test_what_fills_no_batch_is_dropped(tokens, batch, buffer):
    assert len(list(ShuffledStream(numbered(tokens), batch=batch, buffer=buffer))) == tokens // batch


@pytest.mark.parametrize(
    ("tokens", "chunk", "batch", "buffer"), [(1000, 70, 50, 400), (1000, 333, 64, 130), (500, 7, 10, 10)]
)
def test_a_restored_stream_goes_on_to_the_bit(tokens, chunk, batch, buffer):
    whole = list(ShuffledStream(numbered(tokens, chunk), batch=batch, buffer=buffer, seed=3))
    stream = ShuffledStream(numbered(tokens, chunk), batch=batch, buffer=buffer, seed=3)
    given, saved = iter(stream), [stream.state()]
    for _ in whole:
        next(given)
        saved.append(stream.state())  # which must not disturb it either
    for done, state in enumerate(saved):
        fresh = ShuffledStream(numbered(tokens, chunk), batch=batch, buffer=buffer, seed=3)
        fresh.restore(state)
        same(list(fresh), whole[done:])


def test_states_survive_several_kills_and_a_file(tmp_path):
    from safetensors.torch import load_file, save_file

    def new():
        return ShuffledStream(numbered(), batch=30, buffer=200, seed=5)

    whole, got, stream = list(new()), [], new()
    while len(got) < len(whole):
        got += itertools.islice(stream, 4)
        state = stream.state()
        save_file({name: x for name, x in state.items() if isinstance(x, torch.Tensor)}, tmp_path / "state")
        stream = new()
        stream.restore(load_file(tmp_path / "state") | {n: x for n, x in state.items() if isinstance(x, int)})
    same(got, whole)


def test_restoring_reads_no_chunk_again():
    stream = ShuffledStream(numbered(), batch=50, buffer=400)
    next(iter(stream))
    source = numbered()
    fresh = ShuffledStream(source, batch=50, buffer=400)
    fresh.restore(stream.state())
    next(iter(fresh))
    assert source.asked == [6]  # 400 tokens came in 6 chunks of 70, and a rest


def test_iterating_again_goes_on():
    stream = ShuffledStream(numbered(), batch=50, buffer=400)
    first = list(itertools.islice(stream, 3))
    same(first + list(stream), list(ShuffledStream(numbered(), batch=50, buffer=400)))


def test_a_live_model_is_taken_up_again_without_running_it_on_rows_seen(model):
    source = harvest(model, lambda: rows(200), [A, B], together=8)
    whole = list(ShuffledStream(source, batch=100, buffer=500))
    stream = ShuffledStream(source, batch=100, buffer=500)
    assert len(list(itertools.islice(stream, 7))) == 7
    fresh = ShuffledStream(harvest(model, lambda: rows(200), [A, B], together=8), batch=100, buffer=500)
    fresh.restore(stream.state())
    same(list(fresh), whole[7:])
    assert len(whole) == 200 * 11 // 100


def test_other_settings_are_refused():
    state = ShuffledStream(numbered(), batch=50, buffer=400).state()
    for change, says in [({"batch": 25}, "batch 50"), ({"buffer": 401}, "buffer 400"), ({"seed": 1}, "seed 0")]:
        with pytest.raises(InputError, match=says):
            ShuffledStream(numbered(), **{"batch": 50, "buffer": 400, **change}).restore(state)


def test_slips_are_told():
    with pytest.raises(InputError, match="batch of 50 tokens from a buffer of 40"):
        ShuffledStream(numbered(), batch=50, buffer=40)
    chunks = [{A: torch.ones(9, 2)}, {B: torch.ones(9, 2)}]
    with pytest.raises(InputError, match=r"began with .* resid_post\.2 and goes on with attn_out\.4"):
        list(ShuffledStream(lambda first: chunks[first:], batch=5, buffer=10))

"""Hooks live exactly as long as their ``with``: they read what passes, write what they are told, and are gone."""

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from gemlens.lm.hooks import StopForward, read, write


class Doubler(nn.Module):
    """Returns what a block of transformers 5 does: a tensor."""

    def forward(self, x):
        return x * 2


class Tupler(nn.Module):
    """Returns what a block of transformers 4.57 does: a tuple, and more than the hidden state in it."""

    def forward(self, x):
        return x * 2, "weights"


class Keyworded(nn.Module):
    def forward(self, *, x):
        return {"x": x}


X = torch.arange(6.0).reshape(2, 3)
KINDS = pytest.mark.parametrize("kind", [Doubler, Tupler])


def hooks_of(module):
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def first(output):
    return output[0] if isinstance(output, tuple) else output


@KINDS
@pytest.mark.parametrize(("side", "factor"), [("input", 1), ("output", 2)])
def test_reading_collects_a_tensor_a_call(kind, side, factor):
    module = kind()
    with read(module, side) as found:
        module(X)
        module(X + 1)
    assert [tensor.tolist() for tensor in found] == [(factor * X).tolist(), (factor * (X + 1)).tolist()]
    module(X)
    assert len(found) == 2


@KINDS
@pytest.mark.parametrize("side", ["input", "output"])
def test_writing_replaces_the_hidden_state_and_nothing_else(kind, side):
    module = kind()
    with write(module, side, lambda x: x + 1):
        output = module(X)
    assert torch.equal(first(output), X * 2 + (2 if side == "input" else 1))
    if kind is Tupler:
        assert output[1:] == ("weights",)
    assert torch.equal(first(module(X)), X * 2)


def test_keep_sees_each_tensor_before_it_is_kept():
    module = Doubler()
    with read(module, "output", keep=lambda x: x[:, -1]) as found:
        module(X)
    assert found[0].tolist() == [4.0, 10.0]


@pytest.mark.parametrize("side", ["input", "output"])
def test_stopping_ends_the_pass_after_the_first_call(side):
    called = []
    deeper = Doubler()
    deeper.register_forward_hook(lambda *_: called.append(1))
    chain = nn.Sequential(Doubler(), deeper)
    with read(chain[0], side, stop=True) as found, pytest.raises(StopForward):
        chain(X)
    assert len(found) == 1
    assert not called
    assert hooks_of(chain[0]) == 0
    chain(X)
    assert called


def test_a_with_that_never_ran_the_module_ends_quietly():
    with read(Doubler(), "output", stop=True) as found:
        pass
    assert found == []


@pytest.mark.parametrize("opened", [lambda m: read(m, "output"), lambda m: write(m, "input", lambda x: x)])
def test_hooks_are_gone_after_an_exception_inside_the_with(opened):
    module = Doubler()
    with pytest.raises(KeyError), opened(module):
        assert hooks_of(module) == 1
        raise KeyError
    assert hooks_of(module) == 0


@pytest.mark.parametrize("side", ["input", "output"])
def test_hooks_are_gone_after_a_failing_edit(side):
    module = Doubler()

    def fail(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), write(module, side, fail):
        module(X)
    assert hooks_of(module) == 0
    assert torch.equal(module(X), X * 2)


@KINDS
@pytest.mark.parametrize("edit", [lambda x: x[:1], lambda x: x.sum(), lambda x: x[None]])
def test_an_edit_that_changes_the_shape_is_refused(kind, edit):
    module = kind()
    with write(module, "output", edit), pytest.raises(ValueError, match=r"an edit returned shape .* for \(2, 3\)"):
        module(X)
    assert hooks_of(module) == 0


def test_an_edit_keeps_dtype_and_device():
    module = Doubler()
    with write(module, "output", lambda x: x.double() + 0.5):
        assert module(X).dtype == torch.float32


@pytest.mark.parametrize("side", ["input", "output"])
def test_nested_writes_compose_outermost_first(side):
    module = Doubler()
    with write(module, side, lambda x: x + 1), write(module, side, lambda x: x * 10):
        edited = module(X)
    assert torch.equal(edited, (X + 1) * 10 * 2 if side == "input" else (X * 2 + 1) * 10)


def test_a_read_inside_a_write_sees_what_was_written():
    module = Doubler()
    with read(module, "output") as before, write(module, "output", lambda x: x + 1), read(module, "output") as after:
        module(X)
    assert torch.equal(before[0], X * 2)
    assert torch.equal(after[0], X * 2 + 1)


def test_what_is_not_a_tensor_is_refused():
    with read(Keyworded(), "output"):
        pass
    module = Keyworded()
    with read(module, "output"), pytest.raises(TypeError, match="expected a tensor from the hooked module, got dict"):
        module(x=X)
    # A keyword argument does not pass a hook on the input.
    with read(module, "input"), pytest.raises(TypeError, match="expected a tensor from the hooked module, got nothing"):
        module(x=X)


# Inside a norm


@pytest.fixture(params=[Gemma2RMSNorm, Gemma3RMSNorm])
def norm(request):
    norm = request.param(3).requires_grad_(False)
    norm.weight.copy_(torch.tensor([0.5, -1.0, -3.0]))
    return norm


UNIT = X / X.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()


def test_what_a_norm_holds_before_its_scale(norm):
    with read(norm, "normalized") as found:
        out = norm(X)
    torch.testing.assert_close(found, [UNIT])
    assert torch.equal(out, norm(X))
    assert torch.equal(out, found[0] * (1 + norm.weight))
    assert "_norm" not in vars(norm)


def test_what_is_written_before_the_scale_is_scaled(norm):
    with write(norm, "normalized", lambda x: x + 1), read(norm, "output") as found:
        out = norm(X)
    torch.testing.assert_close(out, (UNIT + 1) * (1 + norm.weight))
    assert torch.equal(found[0], out)
    torch.testing.assert_close(norm(X), UNIT * (1 + norm.weight))


def test_hooks_inside_a_norm_compose_outermost_first_and_go_away_after_an_exception(norm):
    before = norm(X)
    with (
        pytest.raises(ZeroDivisionError),
        read(norm, "normalized") as first,
        write(norm, "normalized", lambda x: x + 1),
        write(norm, "normalized", lambda x: x * 10),
        read(norm, "normalized") as last,
    ):
        norm(X)
        raise ZeroDivisionError
    torch.testing.assert_close(first, [UNIT])
    torch.testing.assert_close(last, [(UNIT + 1) * 10])
    assert torch.equal(norm(X), before)
    assert "_norm" not in vars(norm)


def test_a_read_inside_a_norm_can_end_the_pass(norm):
    with read(norm, "normalized", stop=True) as found, pytest.raises(StopForward):
        norm(X)
    torch.testing.assert_close(found, [UNIT])

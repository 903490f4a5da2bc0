"""The arithmetic of training: gradients by hand against autograd, and thresholds against the paper's formulas."""

import pytest
import torch
from torch.nn import functional as F

from gemlens.train import gradients
from gemlens.train.activation import BANDWIDTH, batch_level, threshold_gradient, token_level
from gemlens.train.config import FitConfig
from gemlens.train.gradients import AUXILIARY_WEIGHT, token_weights, train_pass
from gemlens.train.ranks import Alone
from gemlens.train.weights import Weights

N, D, WIDTH, L0 = 40, 12, 24, 5


# What follows is the plain form that the hand-written gradients are held against.


class Jump(torch.autograd.Function):
    """JumpReLU with the pseudo-derivative of arXiv:2407.14435, eq. 11, for the threshold."""

    @staticmethod
    def forward(ctx, pre, threshold):
        ctx.save_for_backward(pre, threshold)
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        kernel = ((pre - threshold).abs() / BANDWIDTH < 0.5).to(pre.dtype)
        by_threshold = -(threshold / BANDWIDTH) * (kernel * grad).float().sum(dim=1, keepdim=True)
        return grad * (pre > threshold), by_threshold.to(pre.dtype)


class Step(torch.autograd.Function):
    """1 where the pre-activation exceeds the threshold; eq. 12."""

    @staticmethod
    def forward(ctx, pre, threshold):
        ctx.save_for_backward(pre, threshold)
        return (pre > threshold).float()

    @staticmethod
    def backward(ctx, grad):
        pre, threshold = ctx.saved_tensors
        kernel = ((pre - threshold).abs() / BANDWIDTH < 0.5).float()
        return None, (-(1 / BANDWIDTH) * kernel * grad).sum(dim=1, keepdim=True).to(pre.dtype)


def plain_loss(params, x, y, config, dead, dtype):
    """The loss as one would write it down, products in ``dtype``."""
    importance = token_weights(y, config.norm_limit)
    own = {name: [tensors[name].to(dtype) for tensors in params] for name in params[0]}
    acts, pres, loss = [], [], 0.0
    for index, read in enumerate(x):
        pre = torch.addmm(own["b_enc"][index][:, None], own["w_enc"][index], read.to(dtype).T)
        if config.activation == "jumprelu":
            threshold = own["log_threshold"][index].exp()[:, None]
            acts.append(Jump.apply(pre, threshold))
            l0 = Step.apply(pre, threshold).sum() / len(read)
            loss = loss + gradients.PENALTY * (l0 / config.l0 - 1) ** 2 / len(x)
        elif config.activation == "topk":
            # Of equal pre-activations, frequent in bfloat16, none fires that would be one too many.
            acts.append(pre.relu() * (pre > pre.detach().topk(int(config.l0) + 1, dim=0).values[-1]))
        else:
            count = int(config.l0 * len(read))
            acts.append(pre.relu() * (pre > pre.detach().flatten().topk(count + 1).values.min()))
        pres.append(pre)
    for size in (*config.groups, config.width):
        errors = []
        for j in range(len(x)):
            recon = own["b_dec"][j].float()
            if "skip" in own:
                recon = recon + x[j].to(dtype) @ own["skip"][j]
            for i in range(j + 1):
                rows = own["w_dec"][i][:size, (j - i) * D : (j - i + 1) * D]
                recon = recon + (acts[i][:size].T @ rows).float()
            errors.append(y[:, j * D : (j + 1) * D] - recon)
        error = torch.cat(errors, dim=1)
        loss = loss + (importance * error.pow(2).mean(dim=1)).mean() / (len(config.groups) + 1)
    for index, ids in enumerate(dead):
        if len(ids):
            target = error[:, index * D :].detach()
            left = target - (pres[index][ids].relu().T @ own["w_dec"][index][ids]).float()
            loss = loss + AUXILIARY_WEIGHT / len(x) * (importance * left.pow(2).mean(dim=1)).mean()
    return loss


CASES = {
    "batchtopk": {},
    "topk": {"activation": "topk"},
    "jumprelu": {"activation": "jumprelu"},
    "matryoshka": {"groups": (4, 10)},
    "matryoshka jumprelu": {"groups": (6,), "activation": "jumprelu"},
    "transcoder": {"kind": "transcoder", "reads": "mlp_in.1", "writes": "mlp_out.1", "skip": True},
    "clt": {
        "kind": "clt", "activation": "jumprelu", "skip": True,
        "reads": [f"mlp_in.{i}" for i in range(3)], "writes": [f"mlp_out.{i}" for i in range(3)],
    },
    # Where few features fire, only those are visited.
    "few": {"width": 160},
    "few topk": {"width": 160, "activation": "topk"},
    "few matryoshka": {"width": 160, "groups": (30, 80)},
    "few matryoshka clt": {
        "kind": "clt", "groups": (80,), "width": 160, "skip": True,
        "reads": ["mlp_in.1", "mlp_in.2"], "writes": ["mlp_out.1", "mlp_out.2"],
    },
    "matryoshka clt": {
        "kind": "clt", "groups": (8,), "reads": ["mlp_in.1", "mlp_in.2"], "writes": ["mlp_out.1", "mlp_out.2"],
    },
}  # fmt: skip


def problem(config, seed=0):
    """Random weights, scaled inputs (one token of high norm), targets, and some dead features."""
    torch.manual_seed(seed)
    layers = len(config.reads)
    x = [torch.randn(N, D) for _ in range(layers)]
    y = torch.randn(N, layers * D)
    y[3] *= 8
    weights = []
    for index in range(layers):
        width = config.width
        given = Weights(torch.randn(width, D) / D**0.5, 0.1 * torch.randn(width),
                        F.normalize(torch.randn(width, (layers - index) * D), dim=1), 0.1 * torch.randn(D))  # fmt: skip
        if config.activation == "jumprelu":
            given.log_threshold = 0.3 * torch.randn(width) - 0.3
        if config.skip:
            given.skip = 0.1 * torch.randn(D, D)
        weights.append(given)
    dead = [torch.tensor([2, 7, 11]), torch.tensor([], dtype=torch.int64), torch.tensor([5])][:layers]
    return weights, x, y, dead


def by_hand(weights, x, y, dead, config, dtype):
    grads = [own.zeros() for own in weights]
    hints = [0.0] * len(x)
    outcome = train_pass([own.to(dtype) for own in weights], grads, x, y, config,
                         dead=dead, hints=hints, warmth=1.0, ranks=Alone())  # fmt: skip
    return outcome, grads


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_gradients_by_hand_are_autograds(case, dtype, tolerance):
    config = FitConfig(**{"width": WIDTH, "l0": L0, **CASES[case]})
    weights, x, y, dead = problem(config)
    outcome, grads = by_hand(weights, x, y, dead, config, dtype)
    params = [{name: t.clone().requires_grad_() for name, t in own.tensors().items()} for own in weights]
    loss = plain_loss(params, x, y, config, dead, dtype)
    loss.backward()
    assert outcome.loss == pytest.approx(loss.item(), rel=max(tolerance, 1e-5))
    for own, theirs in zip(grads, params, strict=True):
        assert own.tensors().keys() == theirs.keys()
        for name, gradient in own.tensors().items():
            expected = theirs[name].grad
            assert expected.norm() > 0, name
            assert (gradient - expected).norm() <= tolerance * expected.norm(), name


def test_each_matryoshka_prefix_has_its_loss():
    """Of one feature a group, the loss is the mean of what the first, the first two, ... leave over."""
    config = FitConfig(width=3, l0=3, groups=(1, 2))
    x, w_dec = torch.randn(N, D), F.normalize(torch.randn(3, D), dim=1)
    given = Weights(w_dec.clone(), torch.full((3,), 9.0), w_dec, torch.zeros(D))
    outcome, grads = by_hand([given], [x], x, [torch.tensor([], dtype=torch.int64)], config, torch.float32)
    acts = x @ w_dec.T + 9
    left = [x - acts[:, :size] @ w_dec[:size] for size in (1, 2, 3)]
    importance = token_weights(x, config.norm_limit)
    expected = sum((importance * error.pow(2).mean(dim=1)).mean() for error in left) / 3
    assert outcome.loss == pytest.approx(expected.item(), rel=1e-5)
    # The last feature answers for the last prefix alone.
    alone = -2 / (3 * N * D) * (acts[:, 2] * importance) @ left[2]
    torch.testing.assert_close(grads[0].w_dec[2], alone)


def test_threshold_gradients_are_the_pseudo_derivatives():
    torch.manual_seed(0)
    pre, threshold, d_acts, d_l0, eps = torch.randn(6, 50), 0.2 + torch.rand(6), torch.randn(6, 50), 0.7, 0.5
    found = threshold_gradient(pre - threshold[:, None], d_acts, threshold, d_l0, eps)
    for feature in range(6):
        theta, total = threshold[feature], 0.0
        for z, d in zip(pre[feature], d_acts[feature], strict=True):
            kernel = 1.0 if abs((z - theta) / eps) < 0.5 else 0.0
            total += d * -(theta / eps) * kernel + d_l0 * -(1 / eps) * kernel
        assert found[feature].item() == pytest.approx(float(total), rel=1e-4)


def test_threshold_gradient_is_that_of_the_expected_loss():
    """A loss of one feature is a step function of its threshold; its mean over Gaussian inputs is smooth, and the
    gradient's mean is its slope."""
    z = torch.randn(1, 1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta, target, sparsity, h = torch.tensor([0.8], dtype=torch.float64), 1.3 * z + 0.4, 0.3, 0.02

    def expected_loss(threshold):
        acts = z * (z > threshold)
        return ((target - acts) ** 2 + sparsity * (z > threshold)).mean()

    d_acts = -2 * (target - z * (z > theta))
    found = threshold_gradient(z - theta, d_acts, theta, sparsity, 0.1) / z.numel()
    slope = (expected_loss(theta + h) - expected_loss(theta - h)) / (2 * h)
    # d_acts jumps where the feature begins to fire; the kernel, which is even, sees the mean of both sides.
    assert found.item() == pytest.approx(slope.item(), rel=0.05)


@pytest.mark.parametrize("hint", [0.0, 0.5, 2.0, 100.0])
def test_batch_level_is_what_so_many_exceed(hint):
    for width in (64, 3000):
        pre = torch.randn(width, 100)
        level = batch_level(pre, 4, hint, Alone())
        assert int((pre > level).sum()) == 400
    assert batch_level(-torch.rand(8, 10), 4, hint, Alone()) == 0
    few = torch.full((8, 10), -1.0).fill_diagonal_(1.0)
    assert batch_level(few, 4, hint, Alone()) == 0


def test_token_level_searched_by_groups_is_that_of_a_full_sort():
    for features, l0 in ((4096, 50), (512, 20), (4095, 50), (512, 40)):
        # Halves of bfloat16 tie with one another often.
        pre = torch.randn(features, 33, generator=torch.Generator().manual_seed(features + l0)).bfloat16()
        level = token_level(pre, l0, Alone())
        assert torch.equal(level, pre.sort(dim=0, descending=True).values[l0])


def test_token_level_is_what_so_many_of_each_token_exceed():
    pre = torch.randn(64, 100).abs()
    assert ((pre > token_level(pre, 4, Alone())).sum(dim=0) == 4).all()
    assert (token_level(pre[:4], 4, Alone()) == 0).all()
    assert (token_level(-pre, 4, Alone()) == 0).all()


class Halves:
    """Two processes played one after the other: what the other gave is replayed."""

    def __init__(self, other):
        self.other, self.given = iter(other), []

    def sum(self, part):
        self.given.append(part.clone())
        return part + next(self.other, torch.zeros_like(part))

    def gather(self, part):
        self.given.append(part.clone())
        return torch.cat([part, next(self.other, part[:0])])


@pytest.mark.parametrize("activation", ["batchtopk", "topk"])
def test_slices_of_the_features_find_the_same_level(activation):
    """All that features of two processes need to agree on goes through ``Ranks``."""
    pre = torch.randn(64, 50)
    halves = pre[:20], pre[20:]

    def level(part, ranks):
        return batch_level(part, 3, 0.0, ranks) if activation == "batchtopk" else token_level(part, 3, ranks)

    first = Halves([])
    level(halves[0], first)
    assert torch.equal(level(halves[1], Halves(first.given)), level(pre, Alone()))


def test_token_weights_limit_only_tokens_of_high_norm():
    x = torch.ones(5, 4)
    x[3] *= 10
    assert token_weights(x, 4.0).tolist() == pytest.approx([1, 1, 1, 0.04, 1])

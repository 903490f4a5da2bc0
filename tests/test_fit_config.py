"""What can be trained: the config's defaults, its JSON, and everything that it refuses."""

import json
from dataclasses import asdict, fields

import pytest

from gemlens.errors import InputError, NotFoundError
from gemlens.train.config import FitConfig
from planted import small

TRANSCODER = {"kind": "transcoder", "reads": "mlp_in.1", "writes": "mlp_out.1"}
CLT = {"kind": "clt", "reads": ["mlp_in.1", "mlp_in.2"], "writes": ["mlp_out.1", "mlp_out.2"]}


@pytest.mark.parametrize("changes", [{}, TRANSCODER, CLT, {"groups": [4, 8], "activation": "jumprelu"}])
def test_a_config_survives_json(changes):
    config = small(**changes)
    assert FitConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert len(fields(FitConfig)) <= 15


def test_the_learning_rate_is_a_trapezoid():
    config = small(tokens=1000 * 256, lr=1.0, decay=0.25)
    rates = [config.lr_at(step) for step in range(config.steps + 1)]
    assert rates[0] == pytest.approx(0.01) and rates[49] == pytest.approx(0.5)
    assert rates[99:751] == [1.0] * 652
    assert rates[875] == pytest.approx(0.5) and rates[1000] == 0
    assert max(small(tokens=30 * 256, lr=1.0).lr_at(step) for step in range(30)) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width 0"),
        ({"l0": 65}, "l0 65: .* width, 64"),
        ({"l0": 0}, "l0 0"),
        ({"l0": float("nan")}, "l0 nan"),
        ({"l0": 2.5, "activation": "topk"}, "whole number"),
        ({"tokens": 10}, "one whole batch"),
        ({"batch": 0}, "one whole batch"),
        ({"lr": 0}, "lr 0"),
        ({"lr": float("nan")}, "lr nan"),
        ({"decay": 1.5}, "decay 1.5"),
        ({"dead_after": 0}, "dead_after 0"),
        ({"norm_limit": 0}, "norm_limit 0"),
        ({"groups": [64]}, "below the width, 64"),
        ({"groups": [8, 8]}, "must rise"),
        ({"groups": [0, 8]}, "above 0"),
        ({"kind": "crosscoder"}, "there are sae, transcoder, clt"),
        ({"activation": "relu"}, "there are jumprelu, batchtopk, topk"),
        ({"reads": "resid_post"}, "is not a site"),
        ({"reads": []}, "0 sites read"),
        ({"skip": True}, "learn to copy"),
        ({"writes": "mlp_out.1"}, "ask for a transcoder"),
        ({"reads": ["resid_post.1", "resid_post.2"]}, "train one for each"),
        (TRANSCODER | {"writes": "mlp_in.1"}, r"mlp_in\.1 is read and written"),
        (TRANSCODER | {"writes": ["mlp_out.1", "mlp_out.2"]}, "1 sites read and 2 written"),
        (CLT | {"writes": ["mlp_out.1", "mlp_out.3"]}, "the same layers"),
        (CLT | {"reads": ["mlp_in.2", "mlp_in.1"], "writes": ["mlp_out.2", "mlp_out.1"]}, "rising order"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


def test_a_site_that_does_not_exist_is_refused():
    with pytest.raises(NotFoundError, match="resid_post"):
        small(reads="resid_pots.1")

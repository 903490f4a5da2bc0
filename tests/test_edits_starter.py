"""On the real Gemma 3 270M: steering by a feature brings the tokens that its decoder row promotes."""

from __future__ import annotations

import torch

from gemlens.lm.gemma import activations, logits
from gemlens.lm.text import encode_prompt, prompt_text
from gemlens.scope.load import load_sae
from gemlens.scope.maxima import maxima
from gemlens.sites import Site
from gemlens.study.intervene import ablate, steer

PROMPTS = ["I think that", "When she opened the door she saw", "The report says that in the last year the"]
FEATURES, TOKENS = 50, 10
NAME = "resid_post/layer_15_width_4k_l0_medium"


def added(model, rows):
    """What rows add to the logits, a part of them at a time; in bfloat16, which is enough to find the largest."""
    head = model.module.lm_head.weight.bfloat16().T
    for part in (rows * (1 + model.backbone.norm.weight)).bfloat16().split(256):
        yield part @ head


def test_more_of_a_feature_brings_more_of_the_tokens_that_it_promotes(starter):
    """Layer 15, the 50 features of largest effect on a logit: the mean log-probability of their ten top tokens rises
    from strength 0 to 0.5 to 1 times the maximum activation."""
    sae = load_sae("starter", NAME)
    everything = list(range(sae.width))
    most = maxima(sae.info, everything)
    rows = sae.decoder.rows(torch.tensor(everything)) * most[:, None]
    # Centred over the vocabulary: what is added to all logits alike changes nothing.
    mean = starter.module.lm_head.weight.mean(dim=0)
    centre = (rows * (1 + starter.backbone.norm.weight)) @ mean
    effects = torch.cat([part.amax(dim=1) for part in added(starter, rows)]).float() - centre
    strongest = effects.topk(FEATURES).indices.tolist()
    [tokens] = (part.topk(TOKENS, dim=1).indices for part in added(starter, rows[strongest]))
    last = Site(starter.n_layers - 1, "resid_post")
    # A row of a batch for each feature and strength.
    strengths = torch.cat([by * torch.eye(FEATURES) for by in (0.0, 0.5, 1.0)])
    seen = torch.zeros(3, FEATURES)
    for prompt in PROMPTS:
        ids = encode_prompt(starter, prompt_text(starter, prompt)).expand(len(strengths), -1)
        with steer(starter, sae, strongest, strengths, relative_to="max"):
            ends = activations(starter, ids, [last])[last][:, -1]
        found = logits(starter, ends).log_softmax(-1).unflatten(0, (3, FEATURES))
        seen += found.gather(-1, tokens.expand(3, -1, -1)).mean(dim=-1)
    rising = int(((seen[0] < seen[1]) & (seen[1] < seen[2])).sum())
    assert rising >= 0.8 * FEATURES, rising


def test_ablation_on_the_starter_is_the_decoder_row_taken_out_by_a_plain_hook(starter):
    sae = load_sae("starter", NAME)
    ids = encode_prompt(starter, prompt_text(starter, "The Eiffel Tower stands in Paris, the capital of"))
    block = starter.backbone.layers[15]
    x = activations(starter, ids, [sae.reads])[sae.reads]
    features = sae.encode(x[0, 1:])
    feature = int(features.top(-1 + len(features), 1)[0])
    row = sae.decoder.rows(torch.tensor([feature]))[0]
    weight = next(w[feature - start] for start, w in sae.encoder.blocks() if 0 <= feature - start < len(w))

    def hook(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        pre = hidden @ weight + sae.b_enc[feature]
        acts = pre.relu() * (pre > sae.threshold[feature])
        acts[:, 0] = 0
        new = hidden - acts[..., None] * row
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = block.register_forward_hook(hook)
    with torch.no_grad():
        expected = starter.module(ids).logits
    handle.remove()
    with torch.no_grad(), ablate(starter, sae, feature):
        found = starter.module(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert (found - starter.module(ids).logits).abs().max() > 0.1

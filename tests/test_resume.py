"""Taking a pass up again at a block is the same computation as the whole pass with an edit there."""

from __future__ import annotations

import pytest
import torch

from gemlens.lm.gemma import activations
from gemlens.lm.resume import clean_pass, resume
from gemlens.sites import Site
from tiny import LAYERS, some_tokens

TOKENS = some_tokens(9, batch=2)
LAST = Site(LAYERS - 1, "resid_post")
EVERY_LAYER = pytest.mark.parametrize("layer", range(LAYERS))


def edit(hidden):
    """Change three positions, BOS left alone."""
    edited = hidden.clone()
    edited[:, 2:5] = edited[:, 2:5].flip(-1) * 1.5
    return edited


def edited_pass(model, module, *, before=False):
    """Output of the last block in a full forward pass, with torch's own hook editing one module."""
    last = []

    def after(_module, _args, output):
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    def first(_module, args):
        return (edit(args[0]), *args[1:])

    handles = [module.register_forward_pre_hook(first) if before else module.register_forward_hook(after)]
    handles.append(model.backbone.norm.register_forward_pre_hook(lambda _module, args: last.append(args[0])))
    try:
        with torch.no_grad():
            model.module(TOKENS, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return last[0]


@EVERY_LAYER
def test_without_an_edit_nothing_changes(layer, model):
    clean = clean_pass(model, TOKENS, layer)
    expected = activations(model, TOKENS, [LAST, Site(layer, "resid_post")])
    assert torch.equal(clean.residual, expected[LAST])
    assert torch.equal(resume(model, clean), expected[LAST])
    assert torch.equal(resume(model, clean, expected[Site(layer, "resid_post")], skip=1), expected[LAST])
    if layer:
        assert torch.equal(clean.entry, activations(model, TOKENS, [Site(layer - 1, "resid_post")]).popitem()[1])


@EVERY_LAYER
def test_an_edited_block_output(layer, model):
    clean = clean_pass(model, TOKENS, layer)
    output = activations(model, TOKENS, [Site(layer, "resid_post")]).popitem()[1]
    expected = edited_pass(model, model.blocks[layer])
    assert torch.equal(resume(model, clean, edit(output), skip=1), expected)
    assert not torch.allclose(expected, clean.residual)


@EVERY_LAYER
def test_an_edited_block_input(layer, model):
    clean = clean_pass(model, TOKENS, layer)
    assert torch.equal(resume(model, clean, edit(clean.entry)), edited_pass(model, model.blocks[layer], before=True))


def test_one_clean_pass_serves_many_edits(model):
    clean = clean_pass(model, TOKENS, 2)
    entry = clean.entry.clone()
    first = resume(model, clean, edit(clean.entry))
    resume(model, clean, torch.zeros_like(entry))
    assert torch.equal(resume(model, clean, edit(clean.entry)), first)
    assert torch.equal(clean.entry, entry)
    assert torch.equal(resume(model, clean), clean.residual)


def test_a_clean_pass_leaves_no_hooks_and_no_gradients(model):
    clean = clean_pass(model, TOKENS, 0)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)
    assert not clean.residual.requires_grad
    assert len(clean.arguments) == LAYERS


def test_skipping_a_block_needs_its_output(model):
    clean = clean_pass(model, TOKENS, 1)
    with pytest.raises(ValueError, match="skip"):
        resume(model, clean, skip=1)


def test_a_block_that_the_model_lacks(model):
    with pytest.raises(ValueError, match="its layers are 0 to 6"):
        clean_pass(model, TOKENS, LAYERS)

"""The local replacement model by plain torch hooks: what attribution graphs are held against.

    frozen = Frozen(model, transcoders, ids)        one clean pass, with nothing of gemlens but the model's weights
    mids, final = frozen.run(written, embedded)     the same, patterns, norm scales and features as they were

``written[layer]`` [batch, n, d] is added to what the MLP of a layer puts out, ``embedded`` to the embeddings. Nothing
answers but attention's values and the transcoders' skips.
"""

from __future__ import annotations

import torch


class Frozen:
    def __init__(self, model, transcoders, ids, keep=1):
        self.model, self.ids, self.weights = model, ids, parts(transcoders)
        self.blocks, self.norm = model.backbone.layers, model.backbone.norm
        self.read = (torch.arange(len(ids)) >= keep) & (ids != 2)
        self.scales, self.patterns, self.x, self.out, self.mid, self.normed = {}, {}, {}, {}, {}, {}
        before, model.config._attn_implementation = model.config._attn_implementation, "eager"
        handles = [norm.register_forward_pre_hook(self._note_scale(norm)) for norm in self._norms()]
        for layer, block in enumerate(self.blocks):
            handles += [
                block.self_attn.register_forward_hook(self._note(self.patterns, layer, lambda output: output[1][0])),
                block.pre_feedforward_layernorm.register_forward_pre_hook(self._note_mid(layer)),
                block.pre_feedforward_layernorm.register_forward_hook(self._note(self.x, layer, lambda y: y[0])),
                block.post_feedforward_layernorm.register_forward_hook(self._note(self.out, layer, lambda y: y[0])),
            ]
        with torch.no_grad():
            self.embedded = model.backbone.embed_tokens(ids)
            self.final = model.backbone(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        for handle in handles:
            handle.remove()
        model.config._attn_implementation = before

    def _norms(self):
        for block in self.blocks:
            yield from (block.input_layernorm, block.post_attention_layernorm, block.pre_feedforward_layernorm)
        yield self.norm

    def _note_scale(self, norm):
        def hook(_module, inputs):
            self.scales[norm] = (inputs[0].pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt()

        return hook

    def _note_mid(self, layer):
        def hook(_module, inputs):
            self.mid[layer] = inputs[0][0]

        return hook

    def _note(self, notes, key, pick):
        def hook(_module, _inputs, output):
            notes[key] = pick(output)

        return hook

    def run(self, written=None, embedded=None, held=None):
        """What each encoder reads (``mlp_in``, [batch, n, d] by layer), and the final norm's output [batch, n, d].

        With ``held``, {(layer, position, feature): activation}, features answer as well, but for these.
        """
        self.held, self.changes = held, {}
        batch = 1 if held is not None else len(embedded) if embedded is not None else len(next(iter(written.values())))
        self.seen, handles = {}, []
        for norm in self._norms():
            handles.append(norm.register_forward_hook(self._frozen_norm(norm)))
        for layer, block in enumerate(self.blocks):
            handles += [
                block.self_attn.register_forward_pre_hook(self._note_hidden(layer), with_kwargs=True),
                block.self_attn.register_forward_hook(self._frozen_attention(layer)),
                block.pre_feedforward_layernorm.register_forward_hook(self._note(self.seen, layer, lambda y: y)),
                block.post_feedforward_layernorm.register_forward_hook(
                    self._frozen_mlp(layer, (written or {}).get(layer))
                ),
            ]
        if embedded is not None:
            handles.append(self.blocks[0].register_forward_pre_hook(lambda _m, args: (args[0] + embedded, *args[1:])))
        with torch.no_grad():
            final = self.model.backbone(input_ids=self.ids.expand(batch, -1), use_cache=False).last_hidden_state
        for handle in handles:
            handle.remove()
        return self.seen, final

    def _frozen_norm(self, norm):
        return lambda _module, inputs, _output: inputs[0] * self.scales[norm] * (1 + norm.weight)

    def _note_hidden(self, layer):
        def hook(_module, args, kwargs):
            self.hidden = kwargs.get("hidden_states", args[0] if args else None)

        return hook

    def _frozen_attention(self, layer):
        attention, pattern = self.blocks[layer].self_attn, self.patterns[layer]

        def hook(_module, _inputs, output):
            batch, n, _ = self.hidden.shape
            values = attention.v_proj(self.hidden).view(batch, n, -1, attention.head_dim).transpose(1, 2)
            values = values.repeat_interleave(len(pattern) // values.shape[1], dim=1)
            mixed = (pattern @ values).transpose(1, 2).reshape(batch, n, -1)
            return (attention.o_proj(mixed), *output[1:])

        return hook

    def _frozen_mlp(self, layer, added):
        def hook(_module, _inputs, _output):
            out = self.out[layer].expand_as(self.seen[layer])
            skip = self.weights[layer]["skip"] if layer in self.weights else None
            if skip is not None:
                change = self.read_by(layer, self.seen[layer]) - self.read_by(layer, self.x[layer])
                out = out + change @ skip * self.read[:, None]
            if self.held is not None:
                self._answer(layer)
                for source, change in self.changes.items():
                    if layer in self.weights[source]["decoders"]:
                        out = out + change @ self.weights[source]["decoders"][layer]
            return out if added is None else out + added

        return hook

    def _answer(self, layer):
        acts = self.acts(layer, self.seen[layer])
        for (at, position, index), value in self.held.items():
            if at == layer:
                acts[0, position, index] = value
        self.changes[layer] = acts - self.acts(layer, self.x[layer])

    def acts(self, layer, x):
        """[..., n, F], 0 where transcoders do not read."""
        pre = self.pre(layer, x)
        return torch.relu(pre) * (pre > self.weights[layer]["threshold"]) * self.read[:, None]

    def read_by(self, layer, x):
        """What the transcoder reads, of the norm's output."""
        return x / (1 + self.blocks[layer].pre_feedforward_layernorm.weight) if self.weights[layer]["inside"] else x

    def pre(self, layer, x):
        """[..., F] of what ``run`` gave for a layer, or of the clean ``x[layer]``."""
        weights = self.weights[layer]
        return self.read_by(layer, x) @ weights["encoder"].T + weights["b_enc"]

    def logits(self, final):
        """Minus their mean, before the soft-cap."""
        scores = final @ self.model.module.lm_head.weight.T
        return scores - scores.mean(-1, keepdim=True)


def parts(transcoders):
    """By layer: encoder [F, d], what is written from here to each later layer, biases, thresholds, skip."""
    found = {}
    if isinstance(transcoders, list):
        for t in transcoders:
            found[t.reads.layer] = {
                "encoder": t.encoder.weight, "b_enc": t.b_enc, "threshold": t.threshold, "skip": t.skip,
                "b_dec": t.b_dec,
                "decoders": {t.reads.layer: t.decoder.weight}, "inside": t.reads.name == "mlp_in_normalized",
            }  # fmt: skip
        return found
    for i, layer in enumerate(transcoders.layers):
        rows = layer.decoder.weight.view(layer.encoder.width, layer.outputs, -1)
        found[i] = {
            "encoder": layer.encoder.weight, "b_enc": layer.b_enc, "threshold": layer.threshold, "skip": layer.skip,
            "b_dec": layer.b_dec,
            "decoders": {i + k: rows[:, k] for k in range(layer.outputs)}, "inside": False,
        }  # fmt: skip
    return found

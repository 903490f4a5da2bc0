"""Sites print and parse as one string, and name the same place for Hugging Face and TransformerLens."""

import pytest

from gemlens.errors import GemlensError, InputError, NotFoundError
from gemlens.sites import SITES, Site, parse_hook_point, parse_site

NAMES = {
    "embed": ("model.layers.0.input", "hook_embed"),
    "attn_out.12": ("model.layers.12.self_attn.o_proj.input", "blocks.12.attn.hook_z"),
    "resid_mid.12": ("model.layers.12.pre_feedforward_layernorm.input", "blocks.12.hook_resid_mid"),
    "mlp_in_normalized.12": (
        "model.layers.12.pre_feedforward_layernorm.normalized",
        "blocks.12.ln2.hook_normalized",
    ),
    "mlp_in.12": ("model.layers.12.pre_feedforward_layernorm.output", "blocks.12.mlp.hook_in"),
    "mlp_out.12": ("model.layers.12.post_feedforward_layernorm.output", "blocks.12.hook_mlp_out"),
    "resid_post.12": ("model.layers.12.output", "blocks.12.hook_resid_post"),
}
IN_A_BLOCK = [name for name in SITES if name != "embed"]


@pytest.mark.parametrize("name", IN_A_BLOCK)
@pytest.mark.parametrize("layer", [0, 7, 61])
def test_a_site_is_its_string(name, layer):
    site = Site(layer, name)
    assert str(site) == f"{name}.{layer}"
    assert parse_site(str(site)) == parse_hook_point(site.hf_hook_point) == parse_hook_point(site.transformer_lens)
    assert parse_site(str(site)) == site


def test_the_embedding_has_no_layer():
    site = Site(0, "embed")
    assert str(site) == "embed"
    assert parse_site("embed") == site
    with pytest.raises(InputError, match="the embedding has no layer but 0; write it as embed"):
        Site(1, "embed")
    for text in ("embed.0", "embed."):
        with pytest.raises(InputError, match="or as embed"):
            parse_site(text)


def test_the_names_of_every_site():
    assert [text.split(".")[0] for text in NAMES] == list(SITES)
    for text, (hugging_face, transformer_lens) in NAMES.items():
        site = parse_site(text)
        assert (site.hf_hook_point, site.transformer_lens) == (hugging_face, transformer_lens)
        assert str(parse_hook_point(hugging_face)) == str(parse_hook_point(transformer_lens)) == text


def test_what_sae_lens_calls_the_input_of_an_mlp():
    assert str(parse_hook_point("blocks.4.hook_mlp_in")) == "mlp_in.4"


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model.", "language_model.model.", "language_model."])
def test_hook_points_of_multimodal_checkpoints_name_the_same_sites(prefix):
    assert str(parse_hook_point(f"{prefix}layers.3.output")) == "resid_post.3"


def test_sites_sort_in_the_order_of_the_forward_pass():
    sites = [Site(layer, name) for layer in (1, 0) for name in sorted(IN_A_BLOCK)] + [Site(0, "embed")]
    order = ("attn_out", "resid_mid", "mlp_in_normalized", "mlp_in", "mlp_out", "resid_post")
    expected = ["embed", *(f"{name}.{layer}" for layer in (0, 1) for name in order)]
    assert [str(site) for site in sorted(sites)] == expected
    assert [str(site) for site in sorted(sites, key=lambda site: site.depth)] == expected


@pytest.mark.parametrize(
    "text",
    [
        *("resid_post", "resid_post.", "resid_post.-1", "resid_post.1.5x", "resid_post.x", "resid_post.1\n"),
        *("12", "", ".", "resid_post.²", "resid_post.٣", "resid_post. 3", "resid_post.07", "resid_post." + "9" * 5000),
    ],
)
def test_what_is_not_a_site_is_refused(text):
    with pytest.raises(InputError, match=r"is not a site; write it as resid_post\.12"):
        parse_site(text)


def test_an_unknown_kind_gets_the_nearest():
    with pytest.raises(NotFoundError, match=r"no site is called 'resid_pots'; did you mean resid_post, resid_mid\?"):
        parse_site("resid_pots.3")
    with pytest.raises(InputError, match="layers count from 0"):
        Site(-1, "resid_post")


@pytest.mark.parametrize(
    "text",
    [
        *(
            "model.layers.3.mlp.output",
            "model.layers.3.input",
            "model.layers.output",
            "model.layers.3.output.3",
            "vision_tower.vision_model.encoder.layers.3.output",
            "model.embed_tokens.output",
            "blocks.3.hook_embed",
            "blocks.{L}.hook_mlp_out",
            "blocks.3.hook_resid_pre",
            "blocks.٣.hook_mlp_out",
            "hook_mlp_out",
            "layers.x.output",
            "",
            "nonsense",
        ),
        *("model.layers.3.self_attn.o_proj.output", f"model.layers.{'9' * 5000}.output", "model.layers.٣.output"),
    ],
)
def test_a_hook_point_without_a_site_is_refused(text):
    with pytest.raises(NotFoundError, match="is not a site gemlens knows") as caught:
        parse_hook_point(text)
    assert isinstance(caught.value, GemlensError)
    assert len(str(caught.value)) < 1000

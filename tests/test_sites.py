"""Sites print and parse as one string, and name the same place for Hugging Face and TransformerLens."""

import pytest

from gemlens.errors import GemlensError, InputError, NotFoundError
from gemlens.sites import SITES, Site, parse_hf_hook_point, parse_site

HF = {
    "attn_out.12": "model.layers.12.self_attn.o_proj.input",
    "mlp_in.12": "model.layers.12.pre_feedforward_layernorm.output",
    "mlp_out.12": "model.layers.12.post_feedforward_layernorm.output",
    "resid_post.12": "model.layers.12.output",
}


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("layer", [0, 7, 61])
def test_a_site_is_its_string(name, layer):
    site = Site(layer, name)
    assert str(site) == f"{name}.{layer}"
    assert parse_site(str(site)) == site
    assert parse_hf_hook_point(site.hf_hook_point) == site


@pytest.mark.parametrize(("text", "hook_point"), HF.items())
def test_the_hook_points_are_those_that_gemma_scope_2_publishes(text, hook_point):
    assert parse_site(text).hf_hook_point == hook_point
    assert str(parse_hf_hook_point(hook_point)) == text


def test_hook_points_of_multimodal_checkpoints_name_the_same_sites():
    assert str(parse_hf_hook_point("model.language_model.layers.3.output")) == "resid_post.3"


def test_transformer_lens_names():
    assert [Site(3, name).transformer_lens for name in SITES] == [
        "blocks.3.attn.hook_z",
        "blocks.3.mlp.hook_in",
        "blocks.3.hook_mlp_out",
        "blocks.3.hook_resid_post",
    ]


def test_depth_is_the_order_of_the_forward_pass():
    sites = [Site(layer, name) for layer in (1, 0) for name in ("resid_post", "mlp_in", "attn_out", "mlp_out")]
    assert [str(site) for site in sorted(sites, key=lambda site: site.depth)] == [
        f"{name}.{layer}" for layer in (0, 1) for name in ("attn_out", "mlp_in", "mlp_out", "resid_post")
    ]


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
    with pytest.raises(NotFoundError, match=r"no site is called 'resid_pots'; did you mean resid_post\?"):
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
            "layers.x.output",
            "",
            "nonsense",
        ),
        *("model.layers.3.self_attn.o_proj.output", f"model.layers.{'9' * 5000}.output", "model.layers.٣.output"),
    ],
)
def test_a_hook_point_without_a_site_is_refused(text):
    with pytest.raises(NotFoundError, match="is not a site gemlens knows") as caught:
        parse_hf_hook_point(text)
    assert isinstance(caught.value, GemlensError)
    assert len(str(caught.value)) < 1000

"""One dictionary for every layer: which of a release's."""

from __future__ import annotations

import pytest

from gemlens.errors import InputError, NotFoundError
from gemlens.scope.catalog import entries
from gemlens.scope.listing import Listed
from gemlens.scope.series import parse_layers, series


def catalogued(repo: str) -> list[Listed]:
    """As ``listing`` gives them offline."""
    from gemlens.scope.listing import _catalogued

    return _catalogued(repo)


def test_gemma_scope_1_gives_what_is_canonical_but_for_ties():
    """Every layer, 16k, L0 nearest 100: SAELens' canonical names."""
    found = series(catalogued("google/gemma-scope-2b-pt-res"))
    canonical = {
        entry.layer: entry.path
        for entry in entries()
        if entry.release == "gemma-scope-2b-pt-res-canonical"
        and entry.width_name == "16k"
        and entry.site == "resid_post"
    }
    assert [each.layer for each in found] == list(range(26))
    same = sum(canonical[each.layer] == each.path for each in found)
    assert same >= 25


def test_gemma_scope_2_gives_all_layers_where_deep_ones_have_more_widths():
    found = series(catalogued("google/gemma-scope-2-270m-pt"))
    assert [each.layer for each in found] == list(range(18))
    assert {each.category for each in found} == {"resid_post_all"}
    small = series(catalogued("google/gemma-scope-2-270m-pt"), l0="small")
    assert all("_l0_small" in each.path and "affine" not in each.path for each in small)


def test_width_and_layers_choose_the_folder_that_has_them():
    found = series(catalogued("google/gemma-scope-2-270m-pt"), width=65536, layers=[5, 12], l0="medium")
    assert [each.path for each in found] == [f"resid_post/layer_{k}_width_65k_l0_medium" for k in (5, 12)]


def test_several_sites_come_in_the_order_of_a_pass():
    found = series(catalogued("google/gemma-scope-2-270m-it"), sites=["resid_post", "mlp_in"])
    assert [(each.layer, each.site) for each in found[:4]] == [
        (0, "mlp_in"),
        (0, "resid_post"),
        (1, "mlp_in"),
        (1, "resid_post"),
    ]
    one = series(catalogued("google/gemma-scope-2-270m-it"), sites=["resid_post.3", "attn_out"], layers=[7])
    assert [(each.layer, each.site) for each in one] == [(3, "resid_post"), (7, "attn_out")]


def test_the_starters():
    pytest.importorskip("gemlens_starter")
    from gemlens.scope.listing import listing

    assert [each.layer for each in series(listing("starter"))] == [5, 9, 12, 15]
    assert len(series(listing("starter"), sites=["mlp_in"])) == 18


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sites": ["mlp_out"]}, "that reads mlp_out; there is resid_post"),
        ({"width": 7}, "with 7 features; there is 16384"),
        ({"layers": [3, 9]}, "at layer 9; there is 0, 3"),
        ({"l0": "big"}, "with L0 big; there is 20"),
    ],
)
def test_what_is_not_there_is_said(options, said):
    found = [Listed(f"layer_{k}/width_16k/average_l0_20", "resid_post", k, 16384, "20") for k in (0, 3)]
    with pytest.raises(NotFoundError, match=said):
        series(found, **options)


def test_layers_are_parsed():
    assert parse_layers("all") is None
    assert parse_layers("0-2,12") == (0, 1, 2, 12)
    for text in ("", "x", "3-1", "1-", "-1", "99999"):
        with pytest.raises(InputError, match="--layers"):
            parse_layers(text)

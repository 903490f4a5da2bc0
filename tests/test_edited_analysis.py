"""``analyze`` with features taken out of the model, and with reconstructions in place of what dictionaries read."""

from __future__ import annotations

import pytest

from cli_helpers import ID, assert_refused, make_world, run
from gemlens.errors import InputError
from gemlens.lm.gemma import activations
from gemlens.lm.text import encode_prompt, prompt_text
from gemlens.study.analyze import analyze
from gemlens.study.intervene import ablate
from gemlens.study.splice import splice
from tiny import random_sae, random_transcoders

TEXT = "the hat and the cat sang in the sun"


def columns(analysis, k=0):
    """Feature -> activation of each token, of what an analysis found."""
    active = analysis.activations[k]
    return {int(feature): active.column(int(feature)).tolist() for feature in set(active.ids.tolist())}


def test_features_that_are_taken_out_are_not_listed_and_the_others_of_their_site_are_as_before(model):
    sae = random_sae(model, "resid_post.3")
    plain = analyze(model, sae, TEXT)
    gone = [f.feature_id for f in plain.tokens[5].features[:2]]
    edited = analyze(model, sae, TEXT, exclude_features=gone)
    expected = {feature: column for feature, column in columns(plain).items() if feature not in gone}
    assert columns(edited) == expected
    assert edited.warnings == (
        f"edited: features {gone[0]}, {gone[1]} of resid_post/handmade taken out of resid_post.3",
    )
    assert plain.warnings == ()


@pytest.mark.parametrize("spliced", [False, True])
def test_what_lies_above_is_of_the_edited_model(spliced, model):
    below, above = random_sae(model, "resid_post.3"), random_sae(model, "resid_post.5", seed=1)
    gone = [f.feature_id for f in analyze(model, below, TEXT).tokens[5].features[:2]]
    found = analyze(model, [below, above], TEXT, exclude_features={0: gone}, splice=False)
    ids = encode_prompt(model, prompt_text(model, TEXT))
    edit = ablate(model, below, gone)
    if spliced:
        found = analyze(model, [below, above], TEXT, exclude_features={0: gone}, splice=True)
        edit = splice(model, below, without=gone)
    with edit:
        x = activations(model, ids, [above.reads])[above.reads][0, 1:]
    features = above.encode(x)
    for token, record in enumerate(found.tokens[1:]):
        top, values = features.top(token, 5)
        listed = [f for f in record.features if f.dictionary == 1]
        assert [f.feature_id for f in listed] == top.tolist()
        assert [f.activation for f in listed] == pytest.approx(values.tolist(), rel=1e-4)


@pytest.mark.parametrize("options", [{"splice": True}, {"exclude_features": range(40)}])
def test_an_edited_model_generates_another_text_whose_every_token_is_read(options, model):
    sae = random_sae(model, "resid_post.3")
    plain = analyze(model, sae, TEXT, max_new_tokens=12, greedy=True)
    edited = analyze(model, sae, TEXT, max_new_tokens=12, greedy=True, **options)
    assert edited.generated_text != plain.generated_text
    assert len(edited.activations[0].indptr) == len(edited.tokens) + 1
    if "splice" in options:
        assert edited.tokens[-1].features
        assert edited.warnings == (
            "edited: resid_post.3 is the reconstruction of resid_post/handmade, without its error",
        )


def test_a_transcoder_is_spliced_where_it_writes(model):
    transcoder = random_transcoders(model)[2]
    found = analyze(model, transcoder, TEXT, splice=True)
    assert columns(found) == columns(analyze(model, transcoder, TEXT))
    assert "mlp_out.2 is the reconstruction" in found.warnings[0]


def test_what_cannot_be_excluded_or_spliced_is_refused(model):
    one, other = random_sae(model, "resid_post.3"), random_sae(model, "resid_post.3", seed=1)
    with pytest.raises(InputError, match="could be of any of 2 dictionaries"):
        analyze(model, [one, other], TEXT, exclude_features=[3])
    with pytest.raises(InputError, match="exclude_features of dictionary 2: there are 2"):
        analyze(model, [one, other], TEXT, exclude_features={2: [3]})
    with pytest.raises(InputError, match="feature 40 does not exist"):
        analyze(model, one, TEXT, exclude_features=[40])
    with pytest.raises(InputError, match=r"would both be spliced in at resid_post\.3"):
        analyze(model, [one, other], TEXT, splice=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_the_command_line(world, tmp_path, capsys):
    plain = run(capsys, *world.arguments("--prompt", TEXT, "--no-chat"))
    assert plain.code == 0
    feature = plain.out.split(" (")[0].split()[-1]
    edited = run(capsys, *world.arguments("--prompt", TEXT, "--no-chat", "--exclude-features", feature))
    assert edited.code == 0
    assert f"edited: feature {feature} of {ID} taken out of resid_post.2" in " ".join(edited.out.split())
    assert f" {feature} (" in plain.out and f" {feature} (" not in edited.out
    (tmp_path / "p.txt").write_text(f"{TEXT}\n{TEXT} and the dog\n")
    many = run(capsys, *world.arguments("--prompts", tmp_path / "p.txt", "--splice"))
    assert many.code == 0 and many.out.count("without its error") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--exclude-features", "x"], ["--exclude-features 'x': write features as 1634,99"]),
        (["--exclude-features", "40"], ["--exclude-features 40", "has the features 0 to 39"]),
        (["--exclude-features", "resid_post.7:3"], ["names resid_post.7, the dictionaries read resid_post.2"]),
        (["--exclude-features", "resid_past.7:3"], ["no site is called 'resid_past'"]),
        (["--sae-id", "resid_post/layer_5_width_40_l0_small", "--exclude-features", "3"], ["names no site"]),
    ],
)
def test_bad_input_is_one_line(options, words, world, capsys):
    assert_refused(run(capsys, *world.arguments("--prompt", TEXT, *options)), *words)

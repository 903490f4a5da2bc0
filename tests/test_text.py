"""Text goes to tokens and comes back: BOS once, the same ids from the same string, every character accounted for."""

from __future__ import annotations

import pytest
import torch

from gemlens.errors import InputError
from gemlens.lm.text import encode_prompt, pieces, prompt_text, texts
from tiny import CHAT_TEMPLATE, CONTEXT, VOCAB, tiny_gemma

TEXTS = [
    "The thing and the hand",
    "  two leading spaces,   three inside, trailing  ",
    "tabs\tand\nlines\r\n\n\n",
    "é is whole; ü is bytes",
    "日本語と한국어",
    "😀😀👩‍👩‍👧‍👦 🏳️‍🌈 é",
    "\ufffd is a character too \ufffd😀",
    "null \x00 and \x7f",
    "𒀀𒀁\U00012345\U00012346",
    "<start_of_turn> and <eos> written out",
    "▁ is an underline",
    "x",
]


def decoded(model, ids):
    return model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def ids_of(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


# Prompts


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("chat", [None, False])
@pytest.mark.parametrize("fixture", ["model", "chat_model"])
def test_the_prompt_text_is_what_the_model_is_fed(fixture, text, system, chat, request):
    model = request.getfixturevalue(fixture)
    fed = prompt_text(model, text, system=system, chat=chat)
    ids = encode_prompt(model, fed)
    assert ids.shape == (1, len(ids_of(model, fed)))
    assert ids.dtype == torch.int64
    assert ids[0].tolist() == ids_of(model, fed)
    assert ids[0].tolist().count(model.bos) == 1
    assert ids[0, 0] == model.bos
    assert text in fed
    assert system is None or f"{system}\n\n{text}" in fed


def test_the_chat_template_is_used_where_there_is_one(model, chat_model):
    turn = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert prompt_text(chat_model, "Hi") == turn
    assert prompt_text(chat_model, "Hi", chat=True) == turn
    assert prompt_text(chat_model, "Hi", chat=False) == "<bos>Hi"
    assert prompt_text(chat_model, "Hi", system="Be brief.") == turn.replace("Hi", "Be brief.\n\nHi")
    assert prompt_text(model, "Hi") == "<bos>Hi"
    assert prompt_text(model, "Hi", system="Be brief.") == "<bos>Be brief.\n\nHi"


def test_a_chat_is_refused_without_a_template(model):
    with pytest.raises(InputError, match="google/gemma-3-tiny has no chat template; leave out --chat"):
        prompt_text(model, "Hi", chat=True)


def test_a_prompt_that_brings_its_own_bos_gets_no_other(model):
    assert prompt_text(model, "<bos>Hi") == "<bos>Hi"


def test_a_template_without_bos_gets_one():
    model = tiny_gemma(chat=True)
    model.tokenizer.chat_template = CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
    assert prompt_text(model, "Hi").startswith("<bos><start_of_turn>user\nHi")


@pytest.mark.parametrize("prompt", ["", " ", "\n\t\n"])
@pytest.mark.parametrize("chat", [None, False])
def test_an_empty_prompt_is_refused(prompt, chat, chat_model):
    with pytest.raises(InputError, match="the prompt is empty"):
        prompt_text(chat_model, prompt, chat=chat, system="Be brief.")


@pytest.mark.parametrize(("prompt", "system"), [("\ud83d", None), ("Hi", "\udcff")])
def test_half_a_character_is_refused(prompt, system, model):
    with pytest.raises(InputError, match="half of a surrogate pair"):
        prompt_text(model, prompt, system=system)


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('System role not supported') }}", "{% if %}", "{{ 1 / x.y }}"]
)
def test_a_template_that_fails_is_an_input_error(template):
    model = tiny_gemma(chat=True)
    model.tokenizer.chat_template = template
    with pytest.raises(InputError, match="the chat template of google/gemma-3-tiny refuses the prompt"):
        prompt_text(model, "Hi", system="Be brief.")
    assert prompt_text(model, "Hi", chat=False) == "<bos>Hi"


def test_the_context_is_the_limit(model):
    fits = "<bos>" + "x" * (CONTEXT - 1)
    assert encode_prompt(model, fits).shape == (1, CONTEXT)
    with pytest.raises(InputError, match=f"the prompt has {CONTEXT + 1} tokens, the context of .* holds {CONTEXT}"):
        encode_prompt(model, fits + "x")
    with pytest.raises(InputError, match=f"the prompt has {CONTEXT} tokens and 1 new ones"):
        encode_prompt(model, fits, room=1)
    assert encode_prompt(model, fits[:-1], room=1).shape == (1, CONTEXT - 1)


# Tokens


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("fixture", ["model", "starter"])
def test_the_texts_of_all_tokens_joined_are_the_text(fixture, text, request):
    model = request.getfixturevalue(fixture)
    ids = ids_of(model, "<bos>" + text)
    assert len(texts(model, ids)) == len(ids)
    joined = "".join(texts(model, ids))
    assert joined == decoded(model, ids)
    # The tokenizer cannot tell its own mark for a space from one in the text.
    assert joined == "<bos>" + text.replace("▁", " ")


def test_the_last_byte_token_brings_the_character(model):
    ids = ids_of(model, "a😀你b")
    assert pieces(model, ids) == ["a", *(f"<0x{byte:02X}>" for byte in "😀你".encode()), "b"]
    assert texts(model, ids) == ["a", "", "", "", "😀", "", "", "你", "b"]


def byte_ids(*bytestrings):
    return [4 + byte for bytestring in bytestrings for byte in bytestring]


@pytest.mark.parametrize(
    "broken", [b"\xf0\x9f\x98", b"\x80", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xe4\xe4\xbd"]
)
def test_bytes_that_are_no_character_add_the_replacement_character(broken, model):
    letter = ids_of(model, "a")
    for ids in (byte_ids(broken), byte_ids(broken) + letter, letter + byte_ids(broken) + letter):
        assert "".join(texts(model, ids)) == decoded(model, ids)
        assert texts(model, ids).count("\ufffd") == len(broken)


def test_whole_characters_survive_beside_broken_ones(model):
    grin, you = "😀".encode(), "你".encode()
    assert texts(model, byte_ids(grin, grin[:2])) == ["", "", "", "😀", "\ufffd", "\ufffd"]
    assert texts(model, byte_ids(b"\x80", you, grin[:1], you)) == ["\ufffd", "", "", "你", "\ufffd", "", "", "你"]
    assert texts(model, byte_ids("\ufffd".encode(), you)) == ["", "", "\ufffd", "", "", "你"]


@pytest.mark.parametrize("seed", range(20))
def test_any_row_of_tokens_joins_to_what_the_tokenizer_decodes(seed, model):
    """Bytes come one at a time here, each a character or none, so that both agree on what is astray."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (40,), generator=generator).tolist()
    ids = [token for first in ids for token in (first, VOCAB - 1)]
    assert "".join(texts(model, ids)) == decoded(model, ids)


def test_no_tokens_no_texts(model):
    assert texts(model, []) == pieces(model, []) == []


def test_an_id_beyond_the_tokenizer_has_no_text(model):
    """Embeddings are often padded to a round number; a random or damaged model picks from the padding."""
    assert pieces(model, [2, VOCAB + 3]) == ["<bos>", ""]
    assert texts(model, [2, VOCAB + 3]) == ["<bos>", ""]


def test_a_token_without_an_embedding_is_refused(starter):
    """Gemma's tokenizer knows one token more than its text models: the place of an image."""
    with pytest.raises(InputError, match="holds '<image_soft_token>', for which starter has no embedding"):
        encode_prompt(starter, prompt_text(starter, "Look: <image_soft_token>"))


def test_the_starters_tokenizer(starter):
    fed = prompt_text(starter, "The capital of France is")
    assert fed == "<bos>The capital of France is"
    ids = encode_prompt(starter, fed)[0].tolist()
    assert pieces(starter, ids) == ["<bos>", "The", "▁capital", "▁of", "▁France", "▁is"]
    assert texts(starter, ids) == ["<bos>", "The", " capital", " of", " France", " is"]
    rare = "\U00012345"  # cuneiform, not in the vocabulary
    assert pieces(starter, ids_of(starter, rare)) == [f"<0x{byte:02X}>" for byte in rare.encode()]
    assert texts(starter, ids_of(starter, rare)) == ["", "", "", rare]

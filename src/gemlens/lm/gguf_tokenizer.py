"""Gemma 3's ``tokenizer.json`` rebuilt from the token list and scores of a GGUF file.

Gemma's tokenizer is a SentencePiece BPE; Google publishes it as a ``tokenizers`` BPE whose merges are every
way to split a token into two others, best score first and, within a score, longest left part first. Three
things must be put back:

1. GGUF writes runs of spaces as spaces; the vocabulary has them as ``▁``.
2. User-defined tokens (runs of spaces, newlines, tabs, HTML tags) carry the score -1000; SentencePiece merges
   them as if they had the score 0, before anything else.
3. User-defined and control tokens are added tokens, cut out before the BPE sees the text. Without them 42 of
   3,306 documents come out different.

``tools/check_tokenizer.py`` holds the result against Google's own file.
"""

from __future__ import annotations

from typing import Any

__all__ = ["tokenizer_json"]

_CONTROL, _USER_DEFINED = 3, 4
# Added tokens that ``decode(skip_special_tokens=True)`` leaves out.
_SPECIAL = {
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
}
# Google's list has one more added token than the model has embeddings; it stands for image patches.
_IMAGE_TOKEN = "<image_soft_token>"


def tokenizer_json(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``tokenizer.json`` for a Gemma 3 GGUF file's metadata."""
    kinds = metadata["tokenizer.ggml.token_type"]
    pieces = [token.decode("utf-8").replace(" ", "▁") for token in metadata["tokenizer.ggml.tokens"]]
    scores = [
        0.0 if kind == _USER_DEFINED else score
        for kind, score in zip(kinds, metadata["tokenizer.ggml.scores"], strict=True)
    ]
    added = [_added(index, pieces[index]) for index, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)]
    added.append(_added(len(pieces), _IMAGE_TOKEN, special=True))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": _bos_first(pieces.index("<bos>")),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": _merges(pieces, scores),
        },
    }


def _added(index: int, content: str, special: bool | None = None) -> dict[str, Any]:
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": content in _SPECIAL if special is None else special,
    }


def _bos_first(bos: int) -> dict[str, Any]:
    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": "<bos>", "type_id": type_id}},
            {"Sequence": {"id": name, "type_id": type_id}},
        ]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [bos], "tokens": ["<bos>"]}},
    }


def _merges(pieces: list[str], scores: list[float]) -> list[list[str]]:
    """Every split of a piece into two pieces, in the order in which the BPE applies them."""
    known = set(pieces)
    found = [
        (score, cut, len(piece) - cut, piece)
        for piece, score in zip(pieces, scores, strict=True)
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    # The sort is stable, also in reverse: equal keys stay in the order of their token ids.
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [[piece[:cut], piece[cut:]] for _, cut, _, piece in found]

"""The bytes that tokens stand for, with tokenizers of every spelling."""

import numpy as np
import pytest
from tokenizers import normalizers, pre_tokenizers

from lightning_pce.scoring.token_bytes import ByteCounter, token_bytes
from tests.helpers.small_tokenizers import byte_level, llama2, smollm2_tokenizer, unigram, word_piece

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
TEXTS = {
    "a word": "the cat",
    "spaces": "  the cat  sat  \n\n",
    "one space": " ",
    "accents": "A naïve\tcafé",
    "CJK": "東京 is 日本",
    "emoji": f"the {FAMILY} sat",
    "a ligature": "\ufb01ne",
    "a name of a special token": "the </s> cat <|im_end|>",
    "the space of SentencePiece": "the\u2581cat",
    "decomposed": "cafe\u0301",
}
TOKENIZERS = {
    "bytes": byte_level,
    "bytes with a space in front": lambda: byte_level(prefix_space=True),
    "bytes of NFKC": lambda: byte_level(normalizer=normalizers.NFKC()),
    "SentencePiece with bytes": llama2,
    "Unigram": unigram,
    "Unigram, a space in front of the text": lambda: unigram("first"),
    "WordPiece": word_piece,
}
EXACT = ("bytes", "bytes with a space in front")


def places(tokenizer, text, split=True):
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=split, return_offsets_mapping=True
    )
    ids, spans = np.array(encoded["input_ids"], np.int32), np.array(encoded["offset_mapping"], int)
    found = ByteCounter(tokenizer).places(text, ids, spans.reshape(-1, 2), special=not split)
    return tokenizer.convert_ids_to_tokens(ids.tolist()), found


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_bytes_add_up_to_the_text(make, text):
    pieces, found = places(make(), text)
    if pieces:  # WordPiece has no token for a space
        assert found.bytes.sum() == found.ends[-1] == len(text.encode())
        assert (found.bytes >= 0).all()
        assert found.starts.tolist() == [0, *found.ends[:-1]]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", EXACT)
def test_byte_level_pieces_are_the_bytes_of_the_text(name, text):
    tokenizer = TOKENIZERS[name]()
    pieces, found = places(tokenizer, text)
    assert found.exact
    byte_of = gpt2_alphabet()
    raw = text.encode()
    for piece, start, end in zip(pieces, found.starts, found.ends, strict=True):
        spelled = bytes(byte_of[c] for c in piece)
        assert raw[start:end] in (spelled, spelled[1:])
        assert raw[start:end] == spelled or start == 0


def gpt2_alphabet():
    """The byte of each character, told by the spelling of characters with all bytes that UTF-8 has."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    points = [*range(0x800), *range(0x800, 0xD800, 0x400), *range(0xE000, 0x110000, 0x1000)]
    byte_of = {}
    for character in map(chr, points):
        ((spelled, _),) = level.pre_tokenize_str(character)
        byte_of |= zip(spelled, character.encode(), strict=True)
    return byte_of


def test_a_character_split_over_tokens_counts_once():
    pieces, found = places(byte_level(), FAMILY)
    assert len(pieces) == len(FAMILY.encode()) == 18
    assert found.bytes.tolist() == [1] * 18
    offsets = byte_level()(FAMILY, return_offsets_mapping=True)["offset_mapping"]
    assert sum(len(FAMILY[a:b].encode()) for a, b in offsets) > 18  # what is not to be done
    _, found = places(llama2(), FAMILY)
    assert found.exact
    assert found.bytes.tolist() == [0] + [1] * 18  # the space in front is none of the text's


def test_where_the_tokenizer_changes_the_text_offsets_tell():
    pieces, found = places(word_piece(), "The  CAFÉ")
    assert not found.exact
    assert (pieces, found.bytes.tolist()) == (["the", "cafe"], [3, 7])
    pieces, found = places(byte_level(normalizer=normalizers.NFKC()), "\ufb01t")
    assert not found.exact
    assert (pieces, found.bytes.tolist()) == (["f", "i", "t"], [0, 3, 1])  # the last one ends the ligature
    assert places(byte_level(normalizer=normalizers.NFKC()), "fit")[1].exact
    # A half becomes three bytes longer, each ligature one shorter: the sum is right and the places are not.
    pieces, found = places(byte_level(normalizer=normalizers.NFKC()), "\u00bd the cat \ufb01\ufb01\ufb01")
    assert not found.exact
    assert found.starts[pieces.index("\u0120cat")] == len("\u00bd the".encode())


def test_unknown_characters_have_their_bytes_and_special_tokens_none():
    pieces, found = places(word_piece(), "the \u2603")
    assert (pieces, found.bytes.tolist()) == (["the", "[UNK]"], [3, 4])
    pieces, found = places(word_piece(), "<|im_start|>the \u2603", split=False)
    assert (pieces, found.bytes.tolist()) == (["<|im_start|>", "the", "[UNK]"], [0, 3, 4])
    tokenizer = byte_level()
    pieces, found = places(tokenizer, "<|im_start|>the<|im_end|>", split=False)
    assert found.exact
    of = dict(zip(pieces, found.bytes.tolist(), strict=True))
    assert of["<|im_start|>"] == of["<|im_end|>"] == 0
    assert sum(of.values()) == 3
    assert found.ends[-1] == len("<|im_start|>the<|im_end|>")


@pytest.mark.parametrize("make", [llama2, lambda: byte_level(prefix_space=True)], ids=["llama2", "bytes"])
def test_a_space_put_in_after_a_special_token_is_none_of_the_text(make):
    pieces, found = places(make(), "<|im_start|>the cat<|im_end|>\n the", split=False)
    assert found.exact
    assert found.bytes.sum() == len("the cat\n the")
    assert sum(piece[0] in "\u2581\u0120" for piece in pieces) > 2


def test_the_table_of_a_vocabulary():
    tokenizer = llama2()
    table = token_bytes(tokenizer)
    assert (table.dtype, len(table)) == (np.int32, len(tokenizer))
    wanted = {"<0x0A>": 1, "\u2581": 1, "\u2581the\u2581": 5, "<s>": 0, "<|im_end|>": 0}
    assert {piece: table[tokenizer.convert_tokens_to_ids(piece)] for piece in wanted} == wanted
    tokenizer = byte_level()
    wanted = {"\u0120the": 4, "\u00c3\u00a9": 2, "\u010a": 1, "</s>": 0}
    ids = tokenizer.convert_tokens_to_ids(list(wanted))
    assert token_bytes(tokenizer)[ids].tolist() == list(wanted.values())
    assert token_bytes(word_piece()) is None


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_smollm2s_pieces_are_the_bytes_of_the_text(text):
    pieces, found = places(smollm2_tokenizer(), text)
    assert found.exact
    byte_of = gpt2_alphabet()
    raw = text.encode()
    assert [raw[a:b] for a, b in zip(found.starts, found.ends, strict=True)] == [
        bytes(byte_of[c] for c in piece) for piece in pieces
    ]

"""Documents as tokens: BOS, groups, numbers, llama.cpp's chunks."""

import json

import numpy as np
import pytest
from tokenizers import normalizers

from lightning_pce._errors import UserError
from lightning_pce.intervals import slots_of
from lightning_pce.scoring.data import read_data
from lightning_pce.scoring.keys import TokenIds, document_number
from lightning_pce.scoring.tokenizing import bos_of, tokenize
from lightning_pce.scoring.windows import plan
from tests.helpers.small_tokenizers import byte_level, llama2, unigram, word_piece


def rows(folder, *found, group=None):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return read_data(path, group=group)


def pieces_by_group(document, names, tokenizer):
    """The text of each group's tokens, as the tokenizer decodes them together."""
    return {
        name: tokenizer.decode(document.ids[document.groups == number].tolist())
        for number, name in enumerate(names)
    }


def test_a_document_is_all_its_tokens_and_all_but_the_first_are_scored(tmp_path):
    tokenizer = byte_level()
    data = rows(tmp_path, {"text": "the cat sat on the mat"}, {"text": "x"})
    found = tokenize(data, tokenizer)
    first, second = found.documents
    assert first.ids.tolist() == tokenizer("the cat sat on the mat")["input_ids"]
    assert first.ids.dtype == first.bytes.dtype == np.int32
    assert first.scored.tolist() == [False] + [True] * (len(first.ids) - 1)
    assert second.scored.tolist() == [False]
    assert first.groups is None
    assert (found.groups, found.bos, found.masking, found.notes) == ((), None, "all tokens", ())
    assert [first.id, first.number] == ["0", document_number("0")]
    keys = TokenIds()
    keys.add(first.ids[1:])
    assert found.token_ids == keys.key
    # A token of its own for each place where characters meet, in bytes.
    assert first.starts.tolist() == [0, *np.cumsum(first.bytes)[:-1]]
    assert first.on_character.all()


@pytest.mark.parametrize(
    ("make", "own"),
    [(byte_level, None), (lambda: byte_level(bos=True), "<s>"), (llama2, "<s>"), (unigram, None)],
    ids=["none, though it has a bos_token", "and an EOS behind", "llama2", "none at all"],
)
def test_bos_is_what_the_tokenizer_itself_puts_in_front(tmp_path, make, own):
    tokenizer = make()
    data = rows(tmp_path, {"text": "the cat"})
    (plain,) = tokenize(data, tokenizer).documents
    expected = None if own is None else tokenizer.convert_tokens_to_ids(own)
    assert bos_of(tokenizer) == expected
    assert (plain.ids[0] == expected) == (own is not None)
    assert not plain.scored[0]
    assert plain.scored[1:].all()
    assert tokenizer.eos_token_id not in plain.ids[1:].tolist()
    assert plain.bytes.sum() == len("the cat")
    asked = tokenize(data, tokenizer, bos=7)
    assert asked.bos == 7
    assert asked.documents[0].ids.tolist() == [7, *plain.ids[0 if own is None else 1 :]]
    assert asked.documents[0].bytes[0] == asked.documents[0].starts[0] == 0
    with pytest.raises(UserError, match="no token 5000"):
        bos_of(tokenizer, 5000)


def test_names_of_special_tokens_in_a_text_are_text(tmp_path):
    tokenizer = byte_level()
    text = "the <|im_end|> cat</s>"
    assert tokenizer.eos_token_id in tokenizer(text)["input_ids"]
    (found,) = tokenize(rows(tmp_path, {"text": text}), tokenizer).documents
    assert not set(found.ids.tolist()) & set(tokenizer.all_special_ids)
    assert found.bytes.sum() == len(text)


def test_prompt_and_completion_are_one_text_and_a_token_is_where_it_ends(tmp_path):
    tokenizer = byte_level()
    data = rows(tmp_path, {"prompt": "the c", "completion": "at sat"}, {"prompt": "", "completion": "the"})
    straddling, alone = tokenize(data, tokenizer).documents
    assert straddling.ids.tolist() == tokenizer("the cat sat")["input_ids"]  # " cat" is one token
    assert pieces_by_group(straddling, data.groups, tokenizer) == {"prompt": "the", "completion": " cat sat"}
    assert alone.groups.tolist() == [1] * len(alone.ids)
    apart = tokenize(rows(tmp_path, {"prompt": "the", "completion": " cat"}), tokenizer, bos=3).documents[0]
    assert pieces_by_group(apart, data.groups, tokenizer) == {"prompt": "the", "completion": " cat"}
    assert apart.groups[0] == -1  # BOS is of none


def test_a_split_character_at_the_border_is_of_the_group_in_which_each_token_ends(tmp_path):
    tokenizer = byte_level()
    (found,) = tokenize(rows(tmp_path, {"prompt": "日", "completion": "本"}), tokenizer).documents
    assert found.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.on_character.tolist() == [False, False, True] * 2
    assert found.starts.tolist() == list(range(6))


def test_a_column_is_the_group_of_all_tokens_of_a_row(tmp_path):
    data = rows(
        tmp_path,
        {"text": "the cat", "source": "web page"},
        {"text": "the dog", "source": "code"},
        group="source",
    )
    assert data.groups == ("code", "web_page")
    web, code = tokenize(data, byte_level()).documents
    assert (set(web.groups.tolist()), set(code.groups.tolist())) == ({1}, {0})


def test_a_lossy_tokenizer_is_said(tmp_path):
    data = rows(tmp_path, {"text": "The cat"}, {"text": "THE"})
    found = tokenize(data, word_piece())
    assert [note for note in found.notes if "2 documents" in note and "offsets" in note]
    assert [document.bytes.sum() for document in found.documents] == [7, 3]
    assert not tokenize(data, byte_level()).notes


def test_a_token_that_shares_a_character_does_not_end_on_one(tmp_path):
    nfkc = byte_level(normalizer=normalizers.NFKC())
    (found,) = tokenize(rows(tmp_path, {"text": "\ufb01t"}), nfkc).documents
    assert (found.bytes.tolist(), found.on_character.tolist()) == ([0, 3, 1], [False, True, True])


def test_rows_of_one_document_share_a_slot_whatever_the_tokenizer(tmp_path):
    data = rows(
        tmp_path,
        {"text": "the cat", "id": "a-1", "document": "a"},
        {"text": "sat", "id": "a-2", "document": "a"},
        {"text": "the dog", "id": "b-1", "document": "b"},
    )
    import torch

    numbers = [[each.number for each in tokenize(data, make()).documents] for make in (byte_level, llama2)]
    assert numbers[0] == numbers[1] == [document_number(unit) for unit in "aab"]
    slots = slots_of(torch.tensor(numbers[0]))
    assert slots[0] == slots[1] != slots[2]
    assert [document.unit for document in data.documents] == ["a", "a", "b"]


@pytest.mark.parametrize("make", [byte_level, llama2], ids=["without BOS", "with BOS"])
def test_the_chunks_of_llama_cpp(tmp_path, make):
    tokenizer, context = make(), 8
    text = "the cat sat on the mat.\n\nand the dog ran\n" * 3
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    data = read_data(path, protocol="llama.cpp")
    found = tokenize(data, tokenizer, protocol="llama.cpp", context=context)
    # The whole file as one text, less its last newline; BOS counts once and then takes the place of a token.
    ids = tokenizer(text[:-1])["input_ids"]
    assert len(found.documents) == len(ids) // context > 2
    targets = []
    for number, chunk in enumerate(found.documents):
        expected = ids[number * context : (number + 1) * context]
        if found.bos is not None:
            expected = [found.bos, *expected[1:]]
        assert chunk.ids.tolist() == expected
        assert np.flatnonzero(chunk.scored).tolist() == list(range(context // 2 + 1, context))
        assert chunk.id == str(number)
        targets += expected[context // 2 + 1 :]
    keys = TokenIds()
    keys.add(targets)
    assert found.token_ids == keys.key
    windows = [w for c in plan(found.documents, context, batch_tokens=64) for b in c.batches for w in b]
    assert sorted(windows) == [
        (number, 0, context, context // 2 + 1) for number in range(len(found.documents))
    ]
    with pytest.raises(UserError, match=r"needs two contexts, 400"):
        tokenize(data, tokenizer, protocol="llama.cpp", context=200)


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="no token to score"):
        tokenize(rows(tmp_path, {"text": "x"}), byte_level())
    with pytest.raises(UserError, match="no token of a completion"):
        tokenize(rows(tmp_path, {"prompt": "the cat", "completion": ""}), byte_level())

    class Slow:
        is_fast = False

    with pytest.raises(UserError, match=r"Slow does not say .* tokenizer\.json"):
        tokenize(rows(tmp_path, {"text": "x"}), Slow())

"""Chats: what the template renders, and which tokens of it are the completion."""

import json

import pytest

from lightning_pce._errors import UserError
from lightning_pce.scoring.data import read_data
from lightning_pce.scoring.tokenizing import tokenize
from tests.helpers.small_tokenizers import MARKED, TEMPLATE, byte_level, smollm2_tokenizer

CHAT = [
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "the dog?"},
    {"role": "assistant", "content": " ran 日本"},
]


def chats(folder, *found, group=None):
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return read_data(path, group=group)


def stretches(document, tokenizer):
    """The text of each run of tokens of the completion."""
    found, before = [], 0
    for token, group in zip(document.ids.tolist(), document.groups.tolist(), strict=True):
        if group == 1:
            if before != 1:
                found.append([])
            found[-1].append(token)
        before = group
    return [tokenizer.decode(each) for each in found]


def test_each_turn_of_the_assistant_is_completion_without_the_prompt_that_asks_for_it(tmp_path):
    tokenizer = byte_level(template=TEMPLATE)
    data = chats(tmp_path, {"messages": CHAT})
    assert data.groups == ("prompt", "completion")
    found = tokenize(data, tokenizer)
    (document,) = found.documents
    assert document.text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert document.ids.tolist() == tokenizer(document.text)["input_ids"]
    assert stretches(document, tokenizer) == ["sat<|im_end|>\n", " ran 日本<|im_end|>\n"]
    special = [i in tokenizer.all_special_ids for i in document.ids.tolist()]
    assert not document.bytes[special].any()
    names = ("<|im_start|>", "<|im_end|>")
    assert document.bytes.sum() == len(document.text.encode()) - sum(
        len(name) * document.text.count(name) for name in names
    )


def test_a_template_that_marks_generation_is_believed(tmp_path):
    tokenizer = byte_level(template=MARKED)
    (document,) = tokenize(chats(tmp_path, {"messages": CHAT[:2]}), tokenizer).documents
    assert stretches(document, tokenizer) == ["sat<|im_end|>"]
    assert document.groups.tolist() == mask(CHAT[:2], tokenizer)


def mask(messages, tokenizer):
    return tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]


def test_a_turn_that_begins_with_a_space_is_not_lost(tmp_path):
    # Offsets of this tokenizer leave out spaces: transformers finds no token there and drops the turn.
    tokenizer = byte_level(template=MARKED)
    (document,) = tokenize(chats(tmp_path, {"messages": CHAT}), tokenizer).documents
    assert stretches(document, tokenizer) == ["sat<|im_end|>", " ran 日本<|im_end|>"]
    assert sum(mask(CHAT, tokenizer)) < (document.groups == 1).sum()


def test_lists_of_messages_as_prompt_and_completion(tmp_path):
    tokenizer = byte_level(template=TEMPLATE)
    data = chats(tmp_path, {"prompt": CHAT[:3], "completion": CHAT[3:]})
    (document,) = tokenize(data, tokenizer).documents
    assert document.text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    # An earlier turn of the assistant is prompt here.
    assert stretches(document, tokenizer) == [" ran 日本<|im_end|>\n"]


def test_a_template_that_writes_bos_does_not_get_a_second(tmp_path):
    tokenizer = byte_level(bos=True, template="{{ bos_token }}" + TEMPLATE)
    begin = tokenizer.bos_token_id
    (document,) = tokenize(chats(tmp_path, {"messages": CHAT}), tokenizer).documents
    assert document.ids.tolist().count(begin) == 1
    assert (document.ids[0], document.scored[0]) == (begin, False)
    tokenizer.chat_template = TEMPLATE
    (document,) = tokenize(chats(tmp_path, {"messages": CHAT}), tokenizer).documents
    assert document.ids.tolist().count(begin) == 1
    assert document.ids[0] == begin


def test_other_templates_are_other_data(tmp_path):
    data = chats(tmp_path, {"messages": CHAT})
    said = {
        tokenize(data, byte_level(template=template)).masking
        for template in (TEMPLATE, TEMPLATE, TEMPLATE.replace("brief", "long"), MARKED)
    }
    assert len(said) == 3


def test_a_group_of_the_whole_chat_needs_no_turns(tmp_path):
    data = chats(tmp_path, {"messages": CHAT, "source": "forum"}, group="source")
    tokenizer = byte_level(
        template="{% for m in messages %}{{ m.content }}{% endfor %}{{ messages | length }}"
    )
    (document,) = tokenize(data, tokenizer).documents
    assert set(document.groups.tolist()) == {0}


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (None, CHAT, "no chat template"),
        ("{{ messages | length }}" + TEMPLATE, CHAT, "renders messages 1 to 1 differently when message 2"),
        (TEMPLATE.replace("assistant\n", "assistant\n<think>"), CHAT, "renders messages 1 to 1 differently"),
        (TEMPLATE, CHAT[1:], "'talk' begins with its completion"),
        ("{{ raise_exception('roles must alternate') }}", CHAT, "roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", CHAT, "refuses its messages"),
        ("{% for %}", CHAT, "refuses its messages"),
        (TEMPLATE, CHAT[:1], "no token of a completion"),
    ],
    ids=[
        "none",
        "a count in front",
        "a prompt to think",
        "assistant first",
        "refused",
        "a wrong type",
        "no template",
        "no turn",
    ],
)
def test_chats_that_are_refused(tmp_path, template, messages, said):
    data = chats(tmp_path, {"messages": messages, "id": "talk"})
    with pytest.raises(UserError, match=said) as caught:
        tokenize(data, byte_level(template=template))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_smollm2s_own_template(tmp_path):
    tokenizer = smollm2_tokenizer()
    data = chats(tmp_path, {"messages": CHAT})
    (document,) = tokenize(data, tokenizer).documents
    assert document.ids.tolist() == tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert not sum(mask(CHAT, tokenizer))
    assert stretches(document, tokenizer) == ["sat<|im_end|>\n", " ran 日本<|im_end|>\n"]

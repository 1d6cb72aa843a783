"""Which records may be compared, by what their headers say."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lightning_pce._errors import UserError
from lightning_pce.runs._records import Record, Saved
from lightning_pce.runs.comparable import basis_of, reference_in, relation, relation_of_all, sections
from lightning_pce.runs.history import History, write_validation
from tests.helpers.scored_records import HOW, document_totals, write_scored


def scored(model, name="web", function="score", without=(), fingerprint=None, **how):
    known = {key: value for key, value in {**HOW, **how}.items() if key not in without}
    saved = (Saved(f"out/{model}", None, None, None),)
    return Record(
        f"key of {model}", function, name, how=known, label=model, saved=saved, fingerprint=fingerprint
    )


A = scored("a")


@pytest.mark.parametrize(
    ("field", "value", "words", "remedy"),
    [
        ("data", "e1", "data is d0d0d0d0d0d0d0d0 and e1", "on the same file"),
        ("protocol", "llama.cpp", "protocol is windows and llama.cpp", "--protocol"),
        ("context", 1024, "context is 512 and 1024", "--context"),
        ("stride", 512, "stride is 256 and 512", "--stride"),
        ("bos", 0, "bos is none and 0", "--bos"),
        ("masking", "completion", "masking is all tokens and completion", "of the same kind"),
        (
            "token_ids",
            "e2",
            "token_ids, of the tokens that were scored, is f1f1f1f1f1f1f1f1 and e2",
            "the same",
        ),
    ],
)
def test_what_differs_is_refused_with_both_values_and_what_to_do(field, value, words, remedy):
    with pytest.raises(UserError) as raised:
        relation(A, scored("b", **{field: value}))
    said = str(raised.value)
    assert said.startswith(f"'a' and 'b' cannot be compared: {words}; score both ")
    assert remedy in said
    assert "\n" not in said


def test_of_several_fields_the_first_is_named():
    with pytest.raises(UserError, match="protocol is"):
        relation(A, scored("b", bos=1, masking="x", protocol="llama.cpp", stride=9, context=7))


def test_what_is_shown_is_not_refused():
    found = relation(A, scored("b", dtype="bfloat16", device="cuda", quantisation="Q8_0"))
    assert found.kind == "tokens"
    assert found.notes == ("dtype is float32 (a), bfloat16 (b).", "device is cpu (a), cuda (b).")
    assert relation(A, scored("b")).notes == ()
    noted = [scored(model, notes=["cut at 16 nats", model]) for model in "ab"]
    assert relation(*noted).notes == ("a and b: cut at 16 nats", "a: a", "b: b")
    assert relation_of_all(noted[:1]).notes == ("a: cut at 16 nats", "a: a")


def test_another_tokenizer_leaves_bytes_of_the_same_data_in_the_same_windows():
    other = {"tokenizer": "a2", "token_ids": "f2"}
    found = relation(A, scored("b", **other, bos=1))  # whose BOS has a number of its own
    assert found.kind == "bytes"
    assert "bos is none (a), 1 (b)." in found.notes
    assert relation(A, scored("b", **other, without=["token_ids"])).kind == "bytes"
    with pytest.raises(UserError, match="context is 512 and 100"):
        relation(A, scored("b", **other, context=100))
    with pytest.raises(
        UserError, match="tokenizer is a1a1a1a1a1a1a1a1 and a2, and one does not know its data"
    ):
        relation(A, scored("b", **other, without=["data"]))


def test_the_protocol_of_llama_cpp_has_no_common_bytes_with_another_tokenizer():
    other = scored("b", tokenizer="a2", token_ids="f2", protocol="llama.cpp")
    with pytest.raises(UserError, match="scores other parts of the text; score both with --protocol windows"):
        relation(scored("a", protocol="llama.cpp"), other)
    assert relation(other, scored("c", tokenizer="a2", token_ids="f2", protocol="llama.cpp")).kind == "tokens"


def test_another_tokenizer_that_gives_the_same_tokens_is_no_other():
    # Such as one to which a chat's tokens were added.
    assert relation(A, scored("b", tokenizer="a2")).kind == "tokens"
    with pytest.raises(UserError, match="bos is none and 1"):
        relation(A, scored("b", tokenizer="a2", bos=1))


def test_of_an_import_the_notes_say_what_is_not_known_and_why_it_is_compared():
    without = ["context", "stride", "bos", "masking", "tokenizer", "dtype", "device"]
    found = relation(A, scored("vllm", function="import", without=without))
    assert found.kind == "tokens"
    assert found.notes == (
        "context, stride, bos and masking are not known of vllm, so that it may have been scored in another "
        "way; compared because the ids of all tokens agree.",
    )
    found = relation(A, scored("vllm", function="import", without=[*HOW]))
    assert found.kind == "tokens"
    assert "of vllm, so that" in found.notes[0]
    assert "slots of documents hold as many tokens" in found.notes[0]
    ids_only = scored("vllm", function="import", without=[*without, "data"], token_ids="e2")
    with pytest.raises(
        UserError, match="token_ids is f1f1f1f1f1f1f1f1 and e2, and one does not know its data"
    ):
        relation(A, ids_only)
    assert relation(A, scored("vllm", without=without, token_ids="e2")).kind == "bytes"


def test_records_of_a_training_are_compared_by_their_fingerprint():
    one, same, other = (
        Record("r", "fit", "val", fingerprint=each, label=each) for each in ("f1", "f1", "f2")
    )
    assert relation(one, same) == ("tokens", ())
    assert relation(one, replace(other, fingerprint=None)) == ("tokens", ())
    with pytest.raises(UserError, match="the fingerprint of the data is f1 and f2; compare validations of"):
        relation(one, other)
    assert "are not known of f1" in relation(A, one).notes[0]


def test_of_many_every_pair_is_looked_at():
    records = [A, scored("b", without=["context", "stride"]), scored("c"), scored("d", dtype="bfloat16")]
    for order in itertools.permutations(records):
        found = relation_of_all(order)
        assert found.kind == "tokens"
        assert len(found.notes) == 2
        assert "context and stride are not known of b, so" in found.notes[0]
    by_bytes = [*records, scored("e", tokenizer="a2", token_ids="f2")]
    assert relation_of_all(by_bytes).kind == "bytes"
    # b knows no context, and could be compared with either.
    for order in itertools.permutations([records[1], A, scored("f", context=9)]):
        with pytest.raises(UserError, match="context is"):
            relation_of_all(order)
    many = [Record("r", "fit", "val", step=k, fingerprint="f1") for k in range(3000)]
    assert relation_of_all(many) == ("tokens", ())


def labels_of(*records):
    return [[record.run for record in part] for part in sections(History(records))]


def test_sections_are_what_was_validated():
    web, code = (
        (scored(model, "web") for model in "ab"),
        (scored(m, "code", data="e1", token_ids="e2") for m in "ab"),
    )
    found = sections(History([each for pair in zip(web, code, strict=True) for each in pair], of="ce"))
    assert [[(each.name, each.label) for each in part] for part in found] == [
        [("web", "a"), ("web", "b")],
        [("code", "a"), ("code", "b")],
    ]
    assert found[0].of == "ce"
    assert sections(History([])) == []


def test_the_same_data_under_other_names_is_one_section():
    unknown = [*HOW]
    vllm = scored("vllm", "vllm_output", "import", without=[key for key in HOW if key != "token_ids"])
    assert labels_of(A, vllm) == [["key of a", "key of vllm"]]
    stranger = scored("x", "x", "import", without=unknown)
    assert labels_of(A, stranger, scored("b")) == [["key of a", "key of x", "key of b"]]
    assert labels_of(stranger, scored("y", "y", "import", without=unknown)) == [["key of x", "key of y"]]
    code = [scored(m, "code", data="e1", token_ids="e2") for m in "ab"]
    assert labels_of(A, scored("b"), stranger, *code) == [
        ["key of a", "key of b", "key of x"],
        ["key of a", "key of b"],
    ]
    assert labels_of(
        Record("r", "fit", "val", fingerprint="f"), Record("s", "fit", "val_dl0", fingerprint="f")
    ) == [["r", "s"]]


def test_one_model_on_two_data_is_two_sections_and_two_models_are_one_that_is_refused():
    code = {"name": "code", "data": "e1", "token_ids": "e2"}
    assert labels_of(A, scored("a", **code)) == [["key of a"], ["key of a"]]
    for others in ([A], [A, scored("c")], [scored("b", data="e3", token_ids="e3", name="x")]):
        part, *_ = sections(History([*others, scored("d", **code)]))
        with pytest.raises(UserError, match="data is"):
            relation_of_all(part)


def test_the_reference_is_found_by_label_path_or_place():
    records = [A, scored("b"), scored("1"), replace(A, label="again")]
    assert reference_in(records, None).label == "a"
    assert reference_in(records, "b").label == "b"
    assert reference_in(records, "out/b/").label == "b"
    assert reference_in(records, "1").label == "1"  # a label before a place
    assert reference_in(records, "0").label == "a"
    assert reference_in(records, -1).label == "again"
    with pytest.raises(UserError, match="'out/a' is the path of a and again: choose one by its label"):
        reference_in(records, "out/a")
    for unknown in ("c", 9, "9", "0.5"):
        with pytest.raises(
            UserError, match=f"no record {unknown!r} to be the reference: choose one of 'a', 'b'"
        ):
            reference_in(records, unknown)


IDS = torch.arange(100) // 2
LOSSES = torch.linspace(0, 5, 100)


def test_the_statistic_is_cross_entropy_or_the_one_that_is_asked_for(tmp_path):
    path = write_scored(tmp_path / "r.jsonl", "a", LOSSES, IDS)
    history = History.load(path)
    assert basis_of(history)[:2] == ("tokens", "ce")
    with pytest.raises(
        UserError, match=r"'a' has no digest of entropy of all tokens: it has ce of all tokens\."
    ):
        basis_of(history.select(of="entropy"))
    with pytest.raises(UserError, match="has no digest of ce of code"):
        basis_of(history.select(group="code"))
    write_validation(tmp_path / "r.jsonl", run="empty", name="topics", step=None, function="score", how=HOW)
    with pytest.raises(
        UserError, match="'empty' has no digest of ce of all tokens: it was kept without digests"
    ):
        basis_of(History.load(path))


def test_sums_of_documents_only_are_a_basis_too(tmp_path):
    path = tmp_path / "r.jsonl"
    totals = document_totals(IDS, LOSSES, torch.ones_like(IDS))
    for model in "ab":
        write_scored(path, model, LOSSES, IDS, digests={}, documents={}, document_totals=totals)
    assert basis_of(History.load(path))[:2] == ("documents", "ce")
    imported = tmp_path / "lm_eval.jsonl"
    for model in "ab":
        without = ["context", "stride", "tokenizer", "token_ids"]
        more = {"digests": {}, "documents": {}, "document_totals": totals, "function": "import"}
        write_scored(imported, model, LOSSES, IDS, without=without, **more)
    assert basis_of(History.load(imported)).notes == (
        "context and stride are not known of a and b, so that they may have been scored in another way; "
        "compared because their documents have the same ids.",
    )
    write_scored(path, "c", LOSSES, IDS)
    with pytest.raises(UserError, match="'a' has no digest of ce"):
        basis_of(History.load(path))


def test_bytes_have_no_groups_and_no_other_statistic(tmp_path):
    path = write_scored(tmp_path / "r.jsonl", "a", LOSSES, IDS)
    write_scored(path, "b", LOSSES, IDS, how={"tokenizer": "a2", "token_ids": "f2"})
    assert basis_of(History.load(path))[:2] == ("bytes", "ce")
    for chosen, option in (({"of": "entropy"}, "--of"), ({"group": "x"}, "--group")):
        with pytest.raises(UserError, match=f"bits per byte of all tokens: leave out {option}"):
            basis_of(History.load(path).select(**chosen))


def test_it_needs_no_torch():
    code = "from lightning_pce.runs import comparable, task_values; import sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pce import Tail, TailTokens, token_statistics
from lightning_pce.metrics import tail_tokens
from lightning_pce.tokens.batch import score_tokens
from tests.helpers.metric_states import fed, state_of
from tests.helpers.ranks import counted_collectives, run_function_on_ranks

V = 7


def tied_batch(seed=0, shape=(4, 9), ignored=0.2):
    """Logits of few values, so that many tokens have the same cross-entropy; labels; ids of documents."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 3, (*shape, V), generator=random).float()
    labels = torch.randint(0, V, shape, generator=random)
    document = torch.randint(-(2**63), 2**63 - 1, shape[:1], generator=random)
    labels = torch.where(torch.rand(shape, generator=random) < ignored, -100, labels)
    return {"logits": logits, "labels": labels, "document": document}


def in_order(*batches, n, shift=False, ignore_index=-100):
    """The rows that are to come out, by sorting all tokens; tuples of Python numbers."""
    rows = []
    for one in batches:
        logits, labels, document = one["logits"], one["labels"], one["document"]
        stats = token_statistics(
            logits, labels, shift=shift, ignore_index=ignore_index, statistics=("ce", "rank")
        )
        for b, t in stats.valid.nonzero().tolist():
            place = t + int(shift)
            ids = int(document[b]), place, int(labels[b, place])
            top = int(logits[b, t].argmax())
            rows.append((-float(stats.ce[b, t]), *ids, top, int(stats.rank[b, t])))
    return [(-ce, *others) for ce, *others in sorted(rows)[:n]]


def rows_of(tail):
    """A result as tuples, without the rows that no token has filled."""
    return [row for row in zip(*(column.tolist() for column in tail), strict=True) if row[0] == row[0]]


# ------------------------------------------------------------------------------------------------ results


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 3, None])
@pytest.mark.parametrize("n", [4, 500])
def test_the_rows_are_the_first_of_all_tokens_in_order(shift, ignore_index, n):
    batches = [tied_batch(seed, (5, 9), 0.2 if ignore_index == -100 else 0.0) for seed in range(3)]
    metric = fed(TailTokens(n, shift=shift, ignore_index=ignore_index), *batches)
    expected = in_order(*batches, n=n, shift=shift, ignore_index=ignore_index)
    assert rows_of(metric.compute()) == expected
    tail = metric.compute()
    assert isinstance(tail, Tail)
    assert {len(column) for column in tail} == {n}
    assert [column.dtype for column in tail] == [torch.float64, *[torch.int64] * 5]
    for column in tail[1:]:
        assert (column[len(expected) :] == -1).all()


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), data=st.data())
def test_neither_batches_nor_chunks_nor_their_order_change_a_bit(seed, data):
    whole = tied_batch(seed, (6, 8))
    order = torch.tensor(data.draw(st.permutations(range(6))))
    cuts = sorted(data.draw(st.lists(st.integers(0, 6), max_size=3)))
    chunks = data.draw(st.sampled_from([[8], [1, 7], [5, 3], [3, 2, 2, 1]]))
    metrics = []
    for rows in order.tensor_split(cuts):
        part = {name: value[rows] for name, value in whole.items()}
        part["logits"] = list(part["logits"].split(chunks, dim=1))
        metrics.append(fed(TailTokens(11), part))
    first, *others = metrics
    for other in others:
        first.merge_state(other)
    assert rows_of(first.compute()) == in_order(whole, n=11)
    assert torch.equal(state_of(first), state_of(fed(TailTokens(11), whole)))


def test_of_more_equal_tokens_than_there_is_room_for_the_lowest_documents_and_positions_stay():
    batches = [
        {"logits": torch.zeros(2, 50, V), "labels": torch.full((2, 50), 3), "document": torch.tensor(ids)}
        for ids in ([9, 4], [7, -2])
    ]
    for order in (batches, batches[::-1]):
        tail = fed(TailTokens(60), *order).compute()
        assert tail.document.tolist() == [-2] * 50 + [4] * 10
        assert tail.position.tolist() == [*range(50), *range(10)]
        assert tail.ce.tolist() == pytest.approx([math.log(V)] * 60)


def test_infinite_losses_come_first_and_nan_is_left_out_and_said_once():
    logits = torch.zeros(1, 4, V)
    logits[0, 1, 2], logits[0, 2, 0] = -math.inf, math.nan
    metric = fed(TailTokens(3), {"logits": logits, "labels": torch.full((1, 4), 2)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tail = metric.compute()
        metric.compute()
    assert tail.ce[0] == math.inf
    assert tail.position.tolist() == [1, 0, 3]
    assert tail.rank.tolist() == [V, 3, 3]
    (message,) = [str(warning.message) for warning in caught]
    assert "TailTokens: 1 tokens had a cross-entropy that is NaN" in message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_of_any_dtype_and_strides(dtype):
    one = tied_batch(shape=(3, 10))
    wide = torch.zeros(10, 2, 3, V + 2, dtype=dtype)
    wide[:, 1, :, 1:-1] = one["logits"].transpose(0, 1).to(dtype)
    strided = wide[:, 1, :, 1:-1].transpose(0, 1)
    one["logits"] = strided.contiguous()
    assert rows_of(fed(TailTokens(5), {**one, "logits": strided}).compute()) == in_order(one, n=5)


def test_flat_labels_and_a_single_one():
    one = tied_batch(shape=(1, 12), ignored=0.0)
    flat = {name: value[0] for name, value in one.items()}
    assert rows_of(fed(TailTokens(5), flat).compute()) == in_order(one, n=5)
    single = TailTokens(5)
    single.update(one["logits"][0, 3], one["labels"][0, 3], document=8)
    ((ce, *others),) = rows_of(single.compute())
    assert others[:3] == [8, 0, int(one["labels"][0, 3])]
    assert ce > 0


# ---------------------------------------------------------------------------------------------- documents


def test_ids_of_documents_are_exact_over_all_of_int64():
    ids = torch.tensor([2**53 + 1, -(2**63), 2**63 - 1, -1, 0])
    losses = torch.arange(5.0, 0.0, -1.0)
    metric = TailTokens(5)
    metric.update(losses=losses, labels=torch.arange(5), document=ids)
    assert torch.equal(metric.compute().document, ids)


def test_ids_for_each_token_move_with_the_labels():
    one = tied_batch(shape=(2, 6), ignored=0.0)
    ids = torch.arange(12).reshape(2, 6) // 4
    metric = TailTokens(50, shift=True)
    metric.update(one["logits"], one["labels"], document=ids)
    tail = metric.compute()
    place = {(int(ids[b, t]), t, int(one["labels"][b, t])) for b in range(2) for t in range(1, 6)}
    assert set(zip(*(column.tolist()[:10] for column in tail[1:4]), strict=True)) == place


def test_without_ids_each_row_is_a_document_known_by_its_labels():
    one = tied_batch(shape=(3, 6))
    del one["document"]
    one["labels"][2] = one["labels"][0]
    seen = {}
    for order in ([0, 1, 2], [2, 1, 0]):
        tail = fed(TailTokens(50), {name: value[order] for name, value in one.items()}).compute()
        seen[tuple(order)] = rows_of(tail)
    assert seen[0, 1, 2] == seen[2, 1, 0]
    assert len({row[1] for row in seen[0, 1, 2]}) == 2


# ------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("form", ["in place", "cut", "flat", "last is 0"])
def test_losses_of_another_kernel_give_the_same_rows_without_top_token_and_rank(form):
    one = tied_batch(shape=(3, 9))
    shift = form != "in place"
    scored = score_tokens(one["logits"], one["labels"], shift=shift)
    losses = scored.ce[:, :-1] if form == "cut" else scored.ce
    ids = one["document"]
    if form == "flat":
        losses, ids = losses.flatten(), ids[:, None].expand(3, 9)
    metric = TailTokens(10, shift=shift)
    metric.update(losses=losses, labels=one["labels"], document=ids)
    expected = in_order(one, n=10, shift=shift)
    assert rows_of(metric.compute()) == [(*row[:4], -1, -1) for row in expected]


def test_a_batch_that_was_scored_need_not_be_scored_again():
    batches = [tied_batch(seed, ignored=0.3) for seed in range(2)]
    metric, twin = TailTokens(9, shift=True), fed(TailTokens(9, shift=True), *batches)
    for one in batches:
        scored = score_tokens(
            one["logits"], one["labels"], document=one["document"], by_document=True, shift=True
        )
        metric.add(scored, one["logits"])
    assert torch.equal(state_of(metric), state_of(twin))
    assert metric.update_count == 2
    alone = TailTokens(9)
    alone.add(scored)
    assert set(alone.compute().top.tolist()) == {-1}


# ----------------------------------------------------------------------------------- ranks and accelerators


def test_where_looking_would_make_the_host_wait_the_rows_are_the_same(monkeypatch):
    batches = [tied_batch(seed, (3, 5)) for seed in range(4)]
    expected = state_of(fed(TailTokens(20), *batches))
    monkeypatch.setattr(tail_tokens, "may_look", lambda _: False)  # as on an accelerator
    assert torch.equal(state_of(fed(TailTokens(20), *batches)), expected)


def test_where_looking_would_make_the_host_wait_a_foreign_label_is_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(tail_tokens, "may_look", lambda _: False)
    metric = TailTokens(3)
    metric.update(losses=torch.tensor([3.0, 2.0, 1.0]), labels=torch.tensor([1, -5, 2]), document=0)
    with pytest.warns(UserWarning, match="1 tokens were left out because their label"):
        assert [row[3] for row in rows_of(metric.compute())] == [1, 2]


def each_takes_its_rows(rank, world_size):
    """Whole rows in turn, in batches of two; a rank may have none."""
    whole = tied_batch(5, (7, 30))
    metric = TailTokens(40, shift=True)
    for rows in torch.arange(rank, 7, world_size).split(2):
        metric.update(**{name: value[rows] for name, value in whole.items()})
    with counted_collectives() as calls:
        tail = metric.compute()
    return {"tail": tail._asdict(), "calls": calls}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_give_the_rows_of_one_by_one_gather(world_size):
    expected = in_order(tied_batch(5, (7, 30)), n=40, shift=True)
    for outcome in run_function_on_ranks(each_takes_its_rows, world_size):
        assert rows_of(Tail(**outcome["tail"])) == expected
        assert outcome["calls"] == ["all_gather"]


# -------------------------------------------------------------------------------------------------- words


def test_rows_in_words():
    logits = torch.zeros(1, 3, V)
    logits[0, 0, 3], logits[0, 1, 2] = 9.0, 5.0
    metric = fed(TailTokens(5), (logits, torch.tensor([[1, 1, 2]])))
    text = metric.compute()._replace(document=torch.full((5,), -3)).words("abc\ndefg".__getitem__)
    assert text.splitlines() == [
        "CE     document  position  label  top   rank",
        r"9.001  -3        0         'b'    '\n'  3",
        r"5.040  -3        1         'b'    'c'   3",
        r"1.946  -3        2         'c'    'a'   3",
    ]
    assert len(metric.compute().words(str, rows=2).splitlines()) == 3


def test_losses_in_words_leave_open_what_is_not_known():
    metric = TailTokens(1)  # whose result torchmetrics squeezes
    metric.update(losses=torch.tensor([2.0, 3.0]), labels=torch.tensor([0, 1]), document=5)
    assert metric.compute().words("ab".__getitem__).splitlines()[1:] == [
        "3.000  5         1         'b'    ?    ?"
    ]


# ---------------------------------------------------------------------------------------------- bad input

LOGITS, LABELS = torch.zeros(2, 3, V), torch.zeros(2, 3, dtype=torch.long)
BAD = {
    "no labels": ("labels", {"logits": LOGITS}),
    "losses alone": ("document", {"losses": LOGITS[..., 0]}),
    "losses without labels": ("labels", {"losses": LOGITS[..., 0], "document": 3}),
    "flat labels without ids": ("document", {"logits": LOGITS[0], "labels": LABELS[0]}),
    "label beyond the vocabulary": ("labels", {"logits": LOGITS, "labels": LABELS + V}),
    "negative label of a loss": ("labels", {"losses": LOGITS[..., 0], "labels": LABELS - 1}),
    "float ids": ("document", {"logits": LOGITS, "labels": LABELS, "document": torch.ones(2)}),
    "ids of another shape": ("document", {"logits": LOGITS, "labels": LABELS, "document": [1, 2, 3]}),
    "chunks that do not fit": ("labels", {"logits": [LOGITS, LOGITS], "labels": LABELS}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_leaves_the_state_as_it_was(case):
    name, arguments = BAD[case]
    metric = fed(TailTokens(5), tied_batch())
    before = state_of(metric).clone()
    with pytest.raises(ValueError, match=f"`{name}`"):
        metric.update(**arguments)
    assert torch.equal(state_of(metric), before)


def test_a_batch_scored_without_documents_is_refused():
    with pytest.raises(ValueError, match="scored by documents"):
        TailTokens().add(score_tokens(LOGITS, LABELS), LOGITS)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "3", None])
def test_an_impossible_number_of_rows_is_refused(n):
    with pytest.raises(ValueError, match="`n`"):
        TailTokens(n)


def test_unsigned_labels_that_cannot_be_ignored_are_said_once():
    metric = TailTokens()
    with pytest.warns(UserWarning, match="TailTokens: the labels are torch.uint8"):
        metric.update(LOGITS, LABELS.to(torch.uint8))

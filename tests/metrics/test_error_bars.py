"""Error bars of metrics: tokens are counted by document, and results have intervals."""

import copy
import math
import warnings

import pytest
import torch

from lightning_pce import PercentileCrossEntropy, StreamingQuantiles, intervals
from lightning_pce.tokens.labels import documents_by_content
from tests.helpers.ranks import counted_collectives, run_function_on_ranks
from tests.helpers.token_batches import GROUP_NAMES, batch, grouped_batch, losses_of, random_losses

ROWS, LENGTH = 60, 16


def rows(seed=0):
    """Logits, labels with prompts and padding ignored, and a document for each row."""
    logits, labels = batch(seed, (ROWS, LENGTH))
    return logits, labels, torch.arange(ROWS) * 3 - 90


def counted(losses, document, weights):
    """Counts ``[128, 97]`` by the definition, token after token; losses, ids and weights flat."""
    counts = torch.zeros(128, 97, dtype=torch.float64)
    for loss, each, weight in zip(losses.tolist(), document.tolist(), weights.tolist(), strict=True):
        if weight > 0:
            slot = int(intervals.slots_of(torch.tensor(each)))
            place = int((math.log(loss) - math.log(1e-7)) / (math.log(1e3) - math.log(1e-7)) * 96)
            counts[slot, min(max(place, 0), 95)] += weight
            counts[slot, 96] += weight * loss
    return counts


def close(a, b):
    assert torch.equal(a[..., :-1], b[..., :-1])  # whole numbers
    torch.testing.assert_close(a[..., -1], b[..., -1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", ["logits", "losses", "losses beside labels", "flat losses", "tokens"])
def test_tokens_are_counted_by_document(form):
    logits, labels, document = rows()
    losses, mask = losses_of(logits, labels), labels != -100
    each = document[:, None].expand(labels.shape)
    arguments = {
        "logits": {"logits": logits, "labels": labels, "document": document},
        "losses": {"losses": losses, "mask": mask, "document": document},
        "losses beside labels": {"losses": losses, "labels": labels, "document": each},
        "flat losses": {"losses": losses.flatten(), "labels": labels, "document": each},
        "tokens": {"logits": logits, "labels": labels, "document": each},
    }[form]
    metric = PercentileCrossEntropy(error_bars=True)
    metric.update(**arguments)
    close(metric.documents, counted(losses.flatten(), each.flatten(), mask.flatten()))


@pytest.mark.parametrize("made_with", [{"error_bars": True}, {"groups": ("a", "b")}])
def test_a_batch_that_was_scored_without_documents_or_groups_is_refused_and_nothing_is_lost(made_with):
    logits, labels, document = rows()
    metric, other = PercentileCrossEntropy(**made_with), PercentileCrossEntropy()
    which = {"document": document} if metric.error_bars else {"group": 0}
    metric.update(logits, labels, **which)
    with pytest.raises(ValueError, match="Expected a batch with"):
        metric.add(other.score_batch(logits, labels))
    assert metric.update_count == 1
    assert metric.compute()["count"] == (labels != -100).sum()
    other.add(metric.score_batch(logits, labels, **which))  # which knows more than is counted
    assert other.compute()["count"] == (labels != -100).sum()


@pytest.mark.parametrize("per_token", [False, True])
def test_documents_are_shifted_with_the_labels(per_token):
    logits, labels, document = rows()
    document = (torch.arange(ROWS * LENGTH) // 5).reshape(ROWS, LENGTH) if per_token else document
    metric = PercentileCrossEntropy(error_bars=True, shift=True)
    metric.update(logits, labels, document=document)
    each = document[:, 1:] if per_token else document[:, None].expand(-1, LENGTH - 1)
    losses = losses_of(logits[:, :-1], labels[:, 1:])
    close(metric.documents, counted(losses.flatten(), each.flatten(), (labels[:, 1:] != -100).flatten()))
    beside = PercentileCrossEntropy(error_bars=True)  # a step that shifted by itself
    beside.update(losses=losses, labels=labels, document=document)
    close(beside.documents, metric.documents)


def test_weights_count_and_nan_does_not():
    losses, document = random_losses(0, 200), torch.arange(200) // 4
    weights = torch.arange(200.0) % 3 / 2
    losses[[3, 50]] = torch.nan
    metric = PercentileCrossEntropy(error_bars=True)
    metric.update(losses=losses, weights=weights, document=document)
    some = ~losses.isnan()
    close(metric.documents, counted(losses[some], document[some], weights[some]))


def test_without_ids_rows_are_known_by_the_labels_that_count_wherever_padding_stands():
    logits, labels, _ = rows()
    front = torch.cat([torch.full((ROWS, 3), -100), labels], dim=1)
    behind = torch.cat([labels, torch.full((ROWS, 3), -100)], dim=1)
    ids = documents_by_content(labels)
    assert len(ids.unique()) == ROWS
    assert torch.equal(documents_by_content(front), ids)
    assert torch.equal(documents_by_content(behind), ids)
    assert not (documents_by_content(labels.flip(1)) == ids).any()
    metric, other = (PercentileCrossEntropy(error_bars=True) for _ in range(2))
    with pytest.warns(UserWarning, match="each row of the labels is one"):
        metric.update(logits, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        metric.update(logits, labels)
    other.update(logits, labels, document=ids)
    other.update(logits, labels, document=ids)
    close(metric.documents, other.documents)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_rows_of_labels_beside_losses_are_the_documents_that_they_are_beside_logits(cut, flat):
    logits, labels, _ = rows()
    labels[:, -1] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric, other = (PercentileCrossEntropy(error_bars=True, shift=cut) for _ in range(2))
        metric.update(logits, labels)
        losses = losses_of(logits[:, :-1], labels[:, 1:]) if cut else losses_of(logits, labels)
        other.update(losses=losses.flatten() if flat else losses, labels=labels)
    close(metric.documents, other.documents)


LOGITS, LABELS, DOCUMENT = rows()
LOSSES = losses_of(LOGITS, LABELS)
REFUSED = {
    "losses alone": ({"losses": LOSSES}, "argument `document`"),
    "a mask without labels": ({"losses": LOSSES, "mask": LABELS >= 0}, "argument `document`"),
    "flat labels": ({"logits": LOGITS[0], "labels": LABELS[0]}, "argument `document`"),
    "filtered losses": (
        {"losses": LOSSES[LABELS != -100], "labels": LABELS},
        "with an id of each token's document",
    ),
    "strings beside losses": (
        {"losses": LOSSES, "labels": LABELS, "document": ["a"] * ROWS},
        "`document` to hold integers",
    ),
    "single tokens": ({"logits": LOGITS[:, :1], "labels": LABELS[:, :1]}, "argument `document`"),
    "floats": ({"logits": LOGITS, "labels": LABELS, "document": DOCUMENT / 2}, "`document` to hold integers"),
    "strings": (
        {"logits": LOGITS, "labels": LABELS, "document": ["a"] * ROWS},
        "`document` to hold integers",
    ),
    "too few": ({"logits": LOGITS, "labels": LABELS, "document": DOCUMENT[1:]}, "`document` with a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_counted_by_document_is_refused_and_nothing_enters(case):
    arguments, message = REFUSED[case]
    metric = PercentileCrossEntropy(error_bars=True)
    metric.update(LOGITS, LABELS, document=DOCUMENT)
    before = metric.digest, metric.documents
    for add in (metric.update, metric.forward):
        with pytest.raises(ValueError, match=message):
            add(**arguments)
        assert torch.equal(metric.digest, before[0])
        assert torch.equal(metric.documents, before[1])


def test_a_document_without_error_bars_is_refused():
    for metric, arguments in [
        (PercentileCrossEntropy(), {"logits": LOGITS, "labels": LABELS}),
        (StreamingQuantiles(), {"values": LOSSES}),
    ]:
        with pytest.raises(ValueError, match="made without `error_bars`"):
            metric.update(**arguments, document=DOCUMENT)
        for name in ("documents", "group_documents"):
            with pytest.raises(AttributeError, match="error_bars=True"):
                getattr(metric, name)
    with pytest.raises(ValueError, match="argument `document`"):
        StreamingQuantiles(error_bars=True).update(LOSSES)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan, "high"])
def test_a_level_outside_0_to_1_is_refused(level):
    with pytest.raises(ValueError, match="`level`"):
        PercentileCrossEntropy(error_bars=True, level=level)


def test_counts_do_not_depend_on_batches():
    logits, labels, document = rows()
    together, apart = (PercentileCrossEntropy(error_bars=True) for _ in range(2))
    together.update(logits, labels, document=document)
    for row in range(ROWS):
        apart.update(logits[row : row + 1], labels[row : row + 1], document=int(document[row]))
        if row % 7 == 0:
            apart.compute()
    close(together.documents, apart.documents)


def test_more_tokens_than_wait_are_all_counted():
    losses = random_losses(0, 1 << 18)
    document = torch.arange(len(losses)) // 1000
    metric = PercentileCrossEntropy(error_bars=True)
    for _ in range(3):
        metric.update(losses=losses, document=document)
    assert metric.documents[:, :-1].sum() == metric.compute()["count"] == 3 << 18
    one = intervals.add(intervals.empty(), losses, None, intervals.slots_of(document))
    close(metric.documents, 3 * one)


def test_results_have_the_intervals_of_digest_and_documents():
    metric = PercentileCrossEntropy((50, 99.9), error_bars=True, level=0.9, groups=GROUP_NAMES)
    for seed in range(3):
        logits, labels, group = grouped_batch(seed, (ROWS, LENGTH))
        metric.update(logits, labels, group=group, document=torch.arange(ROWS) + 100 * seed)
    result = metric.compute()
    assert tuple(result) == metric.keys
    digests = {"": metric.digest, **{f"{name}_": each for name, each in metric.group_digests.items()}}
    documents = {"": metric.documents, **{f"{name}_": each for name, each in metric.group_documents.items()}}
    assert torch.equal(sum(metric.group_documents.values()), metric.documents)
    for prefix, digest in digests.items():
        for statistic in ("mean", "p50", "p99_9"):
            wanted = intervals.interval(digest, documents[prefix], statistic, level=0.9)
            assert result[f"{prefix}{statistic}_low"] == wanted.low
            assert result[f"{prefix}{statistic}_high"] == wanted.high
            assert wanted.low <= result[f"{prefix}{statistic}"] <= wanted.high
    assert result["mean_low"] < result["mean_high"]
    assert metric.view("p50_high").compute() == result["p50_high"]


def test_too_few_documents_give_no_interval_and_say_so_once():
    metric = PercentileCrossEntropy(error_bars=True)
    metric.update(losses=random_losses(), document=torch.arange(100) // 10)
    with pytest.warns(UserWarning, match="hold tokens, 20 are needed"):
        result = metric.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.compute()
    assert result["p50_low"].isnan()
    assert result["mean_high"].isnan()
    assert result["p50"] > 1


def test_a_forward_of_a_small_batch_and_a_trial_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = PercentileCrossEntropy(error_bars=True)
        assert metric(losses=random_losses(0, 8), document=3)["p50_low"].isnan()
        metric.says_reasons = False
        metric.compute()


def test_nothing_gives_nan_and_no_word():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*before the ``update`` method.*")
        warnings.filterwarnings("error", message=".*error bars.*")
        result = PercentileCrossEntropy(error_bars=True).compute()
    assert result["p50_low"].isnan()
    assert result["count"] == 0


def test_reset_forgets_the_documents_that_wait():
    metric = PercentileCrossEntropy(error_bars=True)
    metric.update(LOGITS, LABELS, document=DOCUMENT)
    metric.reset()
    assert not metric.documents.any()
    metric.update(LOGITS, LABELS, document=DOCUMENT)
    copied = copy.deepcopy(metric)
    copied.reset()
    assert metric.documents[:, :-1].sum() == (LABELS >= 0).sum()


def test_an_update_reads_nothing_on_the_host():
    metric = PercentileCrossEntropy(error_bars=True, groups=GROUP_NAMES).to("meta")
    group = torch.zeros(4, dtype=torch.long, device="meta")
    for document in (torch.arange(4, device="meta"), None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits, labels = batch(0, (4, LENGTH))
            metric.update(logits.to("meta"), labels.to("meta"), group=group, document=document)
    assert metric.documents.is_meta
    assert metric.compute()["p50_low"].is_meta


def of_part(rank, parts):
    metric = PercentileCrossEntropy((50,), error_bars=True, groups=GROUP_NAMES)
    for part in range(6):
        if part % parts == rank and part != 4:
            logits, labels, group = grouped_batch(part, (ROWS, LENGTH))
            metric.update(logits, labels, group=group, document=torch.arange(ROWS) + 1000 * part)
    return metric


def counts_of_rank(rank, world_size):
    metric = of_part(rank, 5)  # the ranks see unlike numbers of tokens
    for other in range(world_size, 5):
        if other % world_size == rank:
            metric.merge_state(of_part(other, 5))
    own = metric.documents
    with counted_collectives() as calls:
        result = metric.compute()
    everyone = metric.documents
    again = [metric.compute(), metric.view("p50_low").compute()]
    metric.update(losses=torch.ones(3), group=torch.zeros(3, dtype=torch.long), document=5)
    back = metric.documents[:, :-1].sum() - own[:, :-1].sum()
    return {"result": result, "calls": calls, "documents": everyone, "again": again, "back": back}


def test_counts_are_equal_to_the_bit_on_1_2_and_3_ranks_by_one_collective_more():
    [alone] = run_function_on_ranks(counts_of_rank, 1, timeout=60)
    for world_size in (2, 3):
        for notes in run_function_on_ranks(counts_of_rank, world_size, timeout=60):
            close(notes["documents"], alone["documents"])
            assert notes["calls"] == ["all_gather", "all_reduce"]
            assert notes["again"][0] == notes["result"]
            assert notes["again"][1] == notes["result"]["p50_low"]
            assert notes["back"] == 3
            for name, value in notes["result"].items():
                torch.testing.assert_close(value, alone["result"][name], rtol=0.01, atol=0)  # of > K tokens

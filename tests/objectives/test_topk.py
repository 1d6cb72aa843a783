"""Distillation from K tokens and from whole distributions, against plain torch."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from lightning_pce import distillation, store_topk, teacher_rest, topk_distillation, topk_log_prob
from lightning_pce.objectives import _teacher
from lightning_pce.tokens._divergence_operator import scored_divergence

B, T, V, K = 3, 8, 50, 6
RESTS = ("renormalise", "bucket", "drop")


def case(seed=0, dtype=torch.float32, spread=3.0):
    """Logits of a student and of a teacher that is not far from it, and labels of which some are ignored."""
    random = torch.Generator().manual_seed(seed)
    student = spread * torch.randn(B, T, V, generator=random, dtype=torch.float64)
    teacher = student + 2 * torch.randn(B, T, V, generator=random, dtype=torch.float64)
    labels = torch.randint(V, (B, T), generator=random)
    labels[0, :3] = -100
    labels[1] = teacher[1].argmax(-1)  # among the K
    return student.to(dtype).requires_grad_(), teacher.to(dtype), labels


def stored(teacher, k=K, temperature=1.0):
    """A teacher's K log-probabilities, by log_softmax, in its own dtype."""
    log_prob, index = F.log_softmax(teacher / temperature, -1).topk(k)
    return index, log_prob


def by_hand(student, index, log_prob, rest, temperature=1.0):
    """Forward KL of each token over K tokens, in float64."""
    log_p = F.log_softmax(student.double() / temperature, -1)
    own, log_q = log_p.gather(-1, index), log_prob.double()
    if rest == "renormalise":
        log_q = log_q.log_softmax(-1)
    found = (log_q.exp() * (log_q - own)).sum(-1)
    if rest != "bucket":
        return found
    others = log_p.scatter(-1, index, -math.inf).logsumexp(-1)
    remainder = 1 - log_q.exp().sum(-1)
    return found + torch.where(remainder > 0, remainder * (remainder.log() - others), 0.0)


def whole_by_hand(student, teacher, temperature=1.0):
    log_p, log_q = (F.log_softmax(each.double() / temperature, -1) for each in (student, teacher))
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)


def nll_by_hand(student, labels):
    return F.cross_entropy(student.double().flatten(0, 1), labels.flatten(), reduction="none").reshape(B, T)


def same(loss, expected, student, tolerance=1e-6):
    """The same loss and the same gradient of the student's logits."""
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    own, theirs = (torch.autograd.grad(each, student, retain_graph=True)[0] for each in (loss, expected))
    torch.testing.assert_close(own.double(), theirs.double(), rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------- K tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("rest", RESTS)
def test_loss_and_gradient_are_those_of_plain_torch(rest, temperature, dtype):
    student, teacher, _ = case(dtype=dtype)
    index, log_prob = stored(teacher, temperature=temperature)
    loss = topk_distillation(student, index, log_prob, rest=rest, temperature=temperature)
    assert loss.dtype == dtype
    expected = by_hand(student, index, log_prob, rest, temperature).mean()
    same(loss, expected, student, 1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("rest", RESTS)
def test_a_mix_with_the_nll_of_labels_among_the_k_and_others(rest, temperature):
    student, teacher, labels = case()
    index, log_prob = stored(teacher, temperature=temperature)
    loss = topk_distillation(
        student, index, log_prob, rest=rest, temperature=temperature, labels=labels, nll_weight=0.3
    )
    tokens = by_hand(student, index, log_prob, rest, temperature) + 0.3 * nll_by_hand(student, labels)
    same(loss, tokens[labels != -100].mean(), student)


def test_k_may_differ_by_token_and_a_token_without_any_does_not_count():
    student, teacher, _ = case()
    index, log_prob = stored(teacher)
    fewer = index.clone()
    fewer[0, :, 2:], fewer[1, 0] = -1, -1
    loss = topk_distillation(student, fewer, log_prob.masked_fill(fewer < 0, math.nan), rest="bucket")
    tokens = by_hand(student, index, log_prob, "bucket")
    tokens[0] = by_hand(student[0], index[0, :, :2], log_prob[0, :, :2], "bucket")
    kept = torch.ones(B, T, dtype=torch.bool)
    kept[1, 0] = False
    same(loss, tokens[kept].mean(), student)


def test_mask_labels_shift_and_weights_say_what_counts():
    student, teacher, labels = case()
    index, log_prob = stored(teacher)
    tokens, mask = by_hand(student, index, log_prob, "renormalise"), torch.arange(B * T).reshape(B, T) % 3 > 0
    weights = torch.linspace(0, 2, B * T).reshape(B, T)
    kept = mask & (labels != -100)
    loss = topk_distillation(student, index, log_prob, mask=mask, labels=labels, weights=weights)
    same(loss, (tokens * weights)[kept].sum() / kept.sum(), student)
    later = torch.cat([labels[:, 1:] != -100, torch.zeros(B, 1, dtype=torch.bool)], 1)
    loss = topk_distillation(student, index, log_prob, labels=labels, shift=True, nll_weight=1.0)
    shifted = torch.cat([labels[:, 1:], torch.full((B, 1), -100)], 1)
    same(loss, (tokens + nll_by_hand(student, shifted))[later].mean(), student)


def test_micro_batches_with_a_global_normalizer_are_one_batch():
    student, teacher, labels = case()
    index, log_prob = stored(teacher)
    whole = topk_distillation(student, index, log_prob, labels=labels, nll_weight=0.5)
    count = (labels != -100).sum()
    parts = [
        topk_distillation(
            student[row], index[row], log_prob[row], labels=labels[row], nll_weight=0.5, normalizer=count
        )
        for row in range(B)
    ]
    same(sum(parts), whole.double(), student)


# ------------------------------------------------------------------------------------------ stored teachers


def test_a_stored_teacher_takes_six_bytes_a_token_and_k_and_is_within_half_precision():
    student, teacher, _ = case()
    found = store_topk(teacher, K)
    assert (found.token_ids.dtype, found.log_prob.dtype) == (torch.int32, torch.float16)
    assert found.token_ids.nbytes + found.log_prob.nbytes == 6 * K * B * T
    index, log_prob = stored(teacher)
    assert torch.equal(found.token_ids.long(), index)
    torch.testing.assert_close(found.log_prob, log_prob.half(), rtol=1e-3, atol=0)
    for rest in RESTS:
        loss = topk_distillation(student, *found, rest=rest)
        torch.testing.assert_close(
            loss.double(), by_hand(student, index, log_prob, rest).mean(), rtol=3e-3, atol=0
        )
    warm = store_topk(teacher.bfloat16(), 2, temperature=2.0)
    torch.testing.assert_close(
        warm.log_prob.float(), stored(teacher.bfloat16().float(), 2, 2.0)[1], rtol=1e-3, atol=1e-6
    )


def test_a_rest_that_stored_precision_made_negative_is_0_and_counted_and_said_once():
    teacher = torch.zeros(1, 4, V)
    teacher[..., :3] = torch.tensor([9.0, 8.9, 8.8])
    teacher[0, 3] = 0.0
    index, log_prob = store_topk(teacher, 3)
    while teacher_rest(log_prob).negative == 0:  # as rounding up would have it
        log_prob = torch.nextafter(log_prob, torch.zeros_like(log_prob))
    rest, negative = teacher_rest(log_prob)
    assert negative == 3
    assert rest[0, :3].abs().max() == 0
    assert rest[0, 3] == pytest.approx(1 - 3 / V, rel=1e-3)
    student = torch.zeros(1, 4, V, requires_grad=True)
    _teacher._said.clear()
    with pytest.warns(UserWarning, match="more than 1 at 3 of 4 tokens"):
        loss = topk_distillation(student, index, log_prob, rest="bucket")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        topk_distillation(student, index, log_prob, rest="bucket")
    shares = log_prob.double().exp()
    own = (shares * (log_prob.double() + math.log(V))).sum(-1)
    others = torch.xlogy(rest, rest / ((V - 3) / V))
    torch.testing.assert_close(loss.double(), (own + others).mean(), rtol=1e-6, atol=0)


def test_the_rest_of_fewer_than_k():
    log_prob = torch.tensor([[0.5, 0.25], [0.5, 0.5]]).log()
    valid = torch.tensor([[True, False], [False, False]])
    assert teacher_rest(log_prob, valid).rest.tolist() == pytest.approx([0.5, 0.0])


# -------------------------------------------------------------------------------------- whole distributions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("nll_weight", [0.0, 0.7])
def test_the_whole_distribution_is_kl_div_of_log_softmax(temperature, nll_weight, dtype):
    student, teacher, labels = case(dtype=dtype)
    loss = distillation(student, teacher, temperature=temperature, labels=labels, nll_weight=nll_weight)
    tokens = whole_by_hand(student, teacher, temperature) + nll_weight * nll_by_hand(student, labels)
    same(loss, tokens[labels != -100].mean(), student, 1e-6 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("rest", RESTS)
def test_k_of_the_teachers_logits_is_what_they_would_be_stored_as(rest):
    student, teacher, _ = case()
    expected = by_hand(student, *stored(teacher.double(), temperature=2.0), rest, 2.0).mean()
    same(distillation(student, teacher, k=K, rest=rest, temperature=2.0), expected, student)


def test_k_of_all_tokens_is_the_whole_distribution_whatever_becomes_of_the_rest():
    student, teacher, _ = case()
    expected = whole_by_hand(student, teacher).mean()
    for rest in RESTS:
        same(distillation(student, teacher, k=V, rest=rest), expected, student)
        same(topk_distillation(student, *stored(teacher, V), rest=rest), expected, student)


def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient():
    student, _, _ = case(spread=8.0)
    for loss in (
        distillation(student, student.detach() + 1e4),
        distillation(student, student.detach(), k=K, rest="bucket"),
    ):
        assert 0 <= loss < 1e-3 if loss > 1e-6 else abs(loss) <= 1e-6
    own = torch.autograd.grad(distillation(student, student.detach()), student)[0]
    assert own.abs().max() < 1e-8


def test_masked_vocabularies():
    student, teacher, _ = case()
    masked = teacher.clone()
    masked[..., 40:] = -math.inf
    expected = whole_by_hand(student, masked.clamp(min=-1e4)).mean()
    same(distillation(student, masked), expected, student)
    both = student.detach().clone()
    both[..., 40:] = -math.inf
    both.requires_grad_()
    expected = whole_by_hand(both[..., :40], masked[..., :40]).mean()
    same(distillation(both, masked), expected, both)
    assert distillation(both, teacher) == math.inf  # the teacher has mass where the student can have none


@pytest.mark.parametrize("k", [None, K])
def test_gradcheck(k):
    student, teacher, labels = case(dtype=torch.float64, spread=1.0)
    some, labels = (slice(0, 2), slice(2, 5), slice(0, 12)), labels[:2, 2:5] % 12  # -100 becomes 8
    student, teacher = student[some].detach().requires_grad_(), teacher[some]

    def loss(x):
        return distillation(x, teacher, k=k, rest="bucket", temperature=1.5, labels=labels, nll_weight=0.5)

    assert torch.autograd.gradcheck(loss, student)


def test_opcheck():
    student, teacher, labels = case()
    given = (student, teacher, labels != -100, labels, 2.0, -100, False)
    torch.library.opcheck(scored_divergence, given)
    index, log_prob = stored(teacher)
    torch.library.opcheck(_teacher.teacher_shares, (log_prob, index >= 0, "bucket"))


# ------------------------------------------------------------------------------------------------------ edges

LOSSES = {
    "K tokens": lambda student, teacher, **more: topk_distillation(
        student, *stored(teacher), rest="bucket", **more
    ),
    "whole": distillation,
    "K of logits": lambda student, teacher, **more: distillation(student, teacher, k=K, **more),
}


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_that_do_not_count_may_hold_nan(name):
    student, teacher, labels = case()
    expected = torch.autograd.grad(LOSSES[name](student, teacher, labels=labels, nll_weight=1.0), student)[0]
    with torch.no_grad():
        student[labels == -100] = math.nan
    loss = LOSSES[name](student, teacher, labels=labels, nll_weight=1.0)
    found = torch.autograd.grad(loss, student)[0]
    assert torch.equal(found, expected)
    assert found[labels == -100].abs().max() == 0
    if name == "whole":
        broken = teacher.masked_fill((labels == -100)[..., None], math.nan)
        assert torch.equal(LOSSES[name](student, broken, labels=labels, nll_weight=1.0), loss)
    with torch.no_grad():
        student[2, 3, 4] = math.nan
    assert LOSSES[name](student, teacher, labels=labels).isnan()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("nothing", ["no tokens", "masked", "ignored"])
def test_nothing_is_a_loss_of_0_with_a_gradient_of_zeros(name, nothing):
    student, teacher, labels = case()
    given = {"labels": labels, "nll_weight": 1.0}
    if nothing == "no tokens":
        student, teacher, given["labels"] = student.detach()[:0].requires_grad_(), teacher[:0], labels[:0]
    elif nothing == "masked":
        given["mask"] = torch.zeros_like(labels, dtype=torch.bool)
    else:
        given["labels"] = torch.full_like(labels, -100)
    loss = LOSSES[name](student, teacher, **given)
    assert loss == 0
    (found,) = torch.autograd.grad(loss, student)
    assert torch.equal(found, torch.zeros_like(student))


@pytest.mark.parametrize("name", LOSSES)
def test_a_scaled_loss_under_autocast_of_bfloat16_logits(name):
    student, teacher, labels = case(dtype=torch.bfloat16)
    exact = student.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](student, teacher, labels=labels, nll_weight=0.5)
    expected = LOSSES[name](
        exact, teacher.float() if name != "K tokens" else teacher, labels=labels, nll_weight=0.5
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    own = torch.autograd.grad(1024 * loss, student)[0]
    theirs = torch.autograd.grad(1024 * expected, exact)[0]
    torch.testing.assert_close(own.float(), theirs, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_compiled_step_is_one_graph_and_gives_the_same(name):
    student, teacher, labels = case()

    def loss(x):
        return LOSSES[name](x, teacher, labels=labels, nll_weight=0.5, shift=True)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(student), loss(student), rtol=1e-6, atol=0)
    own, theirs = (torch.autograd.grad(each(student), student)[0] for each in (compiled, loss))
    torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_teacher_of_inference_mode(name):
    student, teacher, labels = case()
    expected = LOSSES[name](student, teacher, labels=labels)
    with torch.inference_mode():
        index, log_prob = stored(teacher)
        logits = teacher.clone()
    loss = (
        topk_distillation(student, index, log_prob, rest="bucket", labels=labels)
        if name == "K tokens"
        else LOSSES[name](student, logits, labels=labels)
    )
    same(loss, expected.double(), student, 1e-7)
    topk_log_prob(student, index).log_rest.sum().backward()


def test_a_single_token():
    student, teacher, labels = (each[1, 2] for each in case())
    student = student.detach().requires_grad_()
    expected = by_hand(student, *stored(teacher), "bucket")
    same(topk_distillation(student, *stored(teacher), rest="bucket", labels=labels), expected, student)


# ---------------------------------------------------------------------------------------------------- refused

LOGITS, INDEX, LOG_PROB = torch.zeros(2, V), torch.tensor([[0, 1], [2, 3]]), torch.full((2, 2), -1.0)
BAD = {
    "logits as log-probabilities": ("teacher_log_prob", (LOGITS, INDEX, LOG_PROB + 3), {}),
    "another K": ("teacher_log_prob", (LOGITS, INDEX, LOG_PROB[:, :1]), {}),
    "integers": ("teacher_log_prob", (LOGITS, INDEX, INDEX), {}),
    "float ids": ("teacher_index", (LOGITS, LOG_PROB, LOG_PROB), {}),
    "arguments the wrong way round": ("teacher_index", (LOGITS, LOG_PROB, INDEX), {}),
    "ids of other tokens": ("teacher_index", (LOGITS, INDEX[:1], LOG_PROB[:1]), {}),
    "an id twice": ("index", (LOGITS, INDEX * 0, LOG_PROB), {}),
    "another rest": ("rest", (LOGITS, INDEX, LOG_PROB), {"rest": "renormalize"}),
    "a mix without labels": ("labels", (LOGITS, INDEX, LOG_PROB), {"nll_weight": 0.5}),
    "a negative mix": ("nll_weight", (LOGITS, INDEX, LOG_PROB), {"nll_weight": -0.5}),
    "temperature": ("temperature", (LOGITS, INDEX, LOG_PROB), {"temperature": 0}),
    "mask of another shape": ("mask", (LOGITS, INDEX, LOG_PROB), {"mask": INDEX > 0}),
    "mask of numbers": ("mask", (LOGITS, INDEX, LOG_PROB), {"mask": torch.ones(2)}),
    "weights of another shape": ("weights", (LOGITS, INDEX, LOG_PROB), {"weights": LOG_PROB}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name_in_one_line(name):
    argument, given, settings = BAD[name]
    with pytest.raises(ValueError, match=f"`{argument}`") as raised:
        topk_distillation(*given, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("k", [0, V + 1, True, 2.0])
def test_an_impossible_k_is_refused(k):
    for call in (lambda: store_topk(LOGITS, k), lambda: distillation(LOGITS, LOGITS, k=k)):
        with pytest.raises(ValueError, match="`k`"):
            call()


def test_vocabularies_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"`teacher_logits`.*two sizes"):
        distillation(LOGITS, LOGITS[:, 1:])

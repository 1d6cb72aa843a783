"""K labels a token and all others together: values, gradients, memory, edges."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from lightning_pce import topk_log_prob
from lightning_pce._threads import single_threaded
from lightning_pce.tokens import _topk_operator, _topk_slots
from tests.helpers.token_cases import VIEW_NAMES, VIEWS, Allocations

N, V, K = 24, 37, 5
TEMPERATURES = (1.0, 2.5)


def case(seed=0, dtype=torch.float64, spread=4.0):
    """Logits, of some tokens fewer than K labels, of one none; a label among the K, not among them, none."""
    random = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(N, V, generator=random, dtype=torch.float64)).to(dtype)
    index = torch.rand(N, V, generator=random).topk(K).indices
    index[3, 2:], index[4, ::2], index[5] = -1, -1, -1
    labels = torch.randint(V, (N,), generator=random)
    labels[:8] = index[:8, 1].clamp(min=0)
    labels[9] = -100
    return logits.requires_grad_(), index, labels


def by_hand(logits, index, labels, temperature=1.0):
    """By log_softmax in float64, with a graph."""
    log_p, valid = F.log_softmax(logits.double() / temperature, -1), index >= 0
    chosen = torch.zeros(*logits.shape[:-1], V + 1, dtype=torch.bool)
    chosen = chosen.scatter(-1, torch.where(valid, index, V), True)[..., :V]
    some = valid.any(-1)
    own = log_p.gather(-1, index.clamp(min=0))
    rest = log_p.masked_fill(chosen, -math.inf).logsumexp(-1)
    logsumexp = (logits.double() / temperature).logsumexp(-1)
    label = F.log_softmax(logits.double(), -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (
        torch.where(valid, own, 0.0),
        torch.where(some, rest, 0.0),
        torch.where(some, logsumexp, 0.0),
        torch.where(labels >= 0, label, 0.0),
    )


def weighted(values):
    """A loss in which every value counts differently."""
    parts = (value.double() * torch.arange(value.numel()).cos().reshape(value.shape) for value in values)
    return sum(part.sum() for part in parts)


def gradient(loss, logits):
    (found,) = torch.autograd.grad(loss, logits)
    return found


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 4e-3)]
)
def test_values_and_gradients_are_those_of_log_softmax_in_float64(temperature, dtype, rtol):
    logits, index, labels = case(dtype=dtype)
    exact = logits.detach().double().requires_grad_()
    found = topk_log_prob(logits, index, labels=labels, temperature=temperature)
    expected = by_hand(exact, index, labels, temperature)
    assert torch.equal(found.valid, index >= 0)
    for actual, value in zip(found, expected, strict=False):
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(
            actual.double(), value, rtol=min(rtol, 2e-6), atol=1e-6 if rtol > 1e-9 else 1e-13
        )
    own = gradient(weighted(found[:4]), logits)
    assert own.dtype == dtype
    torch.testing.assert_close(own.double(), gradient(weighted(expected), exact), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradcheck(temperature):
    logits, index, labels = (each[3:7] for each in case(spread=1.0))
    logits = logits[:, :20].detach().requires_grad_()
    index, labels = index.where(index < 20, -1), labels.where(labels < 20, -100)

    def values(x):
        return topk_log_prob(x, index, labels=labels, temperature=temperature)[:4]

    assert torch.autograd.gradcheck(values, logits)


def test_opcheck():
    logits, index, labels = case(dtype=torch.float32)
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")  # the other one takes a second
    for temperature, some in ((1.0, None), (1.0, labels), (2.5, labels)):
        given = (logits, index, some, temperature, -100, False)
        every = {} if temperature == 1.0 and some is labels else {"test_utils": quick}
        torch.library.opcheck(_topk_operator.scored_topk, given, **every)


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
def test_logits_of_any_strides(view):
    logits, index, labels = case()
    logits, index, labels = logits.detach().reshape(4, 6, V), index.reshape(4, 6, K), labels.reshape(4, 6)
    strided = view(logits).detach().requires_grad_()
    whole = logits.clone().requires_grad_()
    for some in (strided, whole):
        weighted(topk_log_prob(some, index, labels=labels)[:4]).backward()
    torch.testing.assert_close(strided.grad, whole.grad, rtol=0, atol=0)


def test_int32_indexes_and_shifted_labels():
    logits, index, labels = case()
    logits, index, labels = logits.detach().reshape(2, 12, V), index.reshape(2, 12, K), labels.reshape(2, 12)
    found = topk_log_prob(logits, index.int(), labels=labels, shift=True)
    later = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], 1)
    torch.testing.assert_close(found, topk_log_prob(logits, index, labels=later))


# ------------------------------------------------------------------------------------------------- precision


def test_what_is_nearly_certain_or_impossible_is_not_rounded_to_0_or_1():
    """One of the K at 1 - 1e-12; the rest from its own logits; float32."""
    logits = torch.zeros(1, V, dtype=torch.float32)
    logits[0, 7] = math.log(V / 1e-12)
    exact = logits.double().requires_grad_()
    logits.requires_grad_()
    index, labels = torch.tensor([[7, 1, 2]]), torch.tensor([7])
    found, expected = topk_log_prob(logits, index), by_hand(exact, index, labels)
    torch.testing.assert_close(found.log_rest.double(), expected[1], rtol=1e-6, atol=0)
    gap = exact.detach()[0, 7] - exact.detach()[0, torch.arange(V) != 7].logsumexp(0)
    torch.testing.assert_close(found.log_prob[0, 0].double(), -torch.log1p((-gap).exp()), rtol=1e-6, atol=0)
    own = gradient(found.log_prob[0, 0], logits)[0]
    torch.testing.assert_close(own[7].double(), (-gap).exp(), rtol=2e-6, atol=0)
    torch.testing.assert_close(own[8].double(), -1 / (V - 1) * (-gap).exp(), rtol=2e-6, atol=0)
    # All others share the gradient of the rest, although each of them has 3e-14.
    rest = gradient(topk_log_prob(logits, index).log_rest.sum(), logits)[0]
    torch.testing.assert_close(rest[8], torch.tensor(1 / (V - 3)), rtol=2e-6, atol=0)


@pytest.mark.parametrize("large", [1e4, -1e4])
def test_logits_near_1e4(large):
    logits = torch.zeros(2, V, requires_grad=True)
    with torch.no_grad():
        logits[:, :3] += torch.tensor([large, large - 1, large + 1])
        logits[1] += large
    exact = logits.detach().double().requires_grad_()
    index, labels = torch.tensor([[0, 1, 2]] * 2), torch.tensor([0, 5])
    found, expected = topk_log_prob(logits, index, labels=labels), by_hand(exact, index, labels)
    for actual, value in zip(found, expected, strict=False):
        torch.testing.assert_close(actual.double(), value, rtol=1e-6, atol=1e-6)
    own, theirs = (gradient(weighted(each[:4]), x) for each, x in ((found, logits), (expected, exact)))
    torch.testing.assert_close(own.double(), theirs, rtol=1e-5, atol=1e-7)


# ----------------------------------------------------------------------------------------------------- edges


def test_infinite_and_missing_logits():
    logits, index, _ = case(dtype=torch.float32)
    with torch.no_grad():
        logits[0, index[0, 0]] = -math.inf  # one of the K
        logits[1] = (
            logits[1].index_fill(0, index[1], 1.0).where(torch.isin(torch.arange(V), index[1]), -math.inf)
        )
        logits[2] = math.nan
        logits[5] = math.nan  # no labels: not read
        logits[6, 0] = math.inf
        logits[10] = -math.inf
    found = topk_log_prob(logits, index)
    assert found.log_prob[0, 0] == -math.inf
    assert found.log_prob[0, 1:].isfinite().all()
    assert found.log_rest[1] == -math.inf
    torch.testing.assert_close(found.log_prob[1].exp(), torch.full((K,), 1 / K))
    for broken in (2, 6, 10):
        assert found.log_prob[broken].isnan().all()
        assert found.log_rest[broken].isnan()
    own = gradient(found.log_prob.sum(), logits)
    assert own[5].abs().max() == 0
    assert own[[0, 1]].isfinite().all()
    assert own[1, ~torch.isin(torch.arange(V), index[1])].abs().max() == 0
    # A loss that leaves broken tokens out is not touched by them.
    found = topk_log_prob(logits, index)
    kept = torch.ones(N, dtype=torch.bool).index_fill(0, torch.tensor([2, 6, 10]), False)
    own = gradient(torch.where(kept[:, None], found.log_prob, 0.0).sum(), logits)
    assert own[~kept].abs().max() == 0
    assert own.isfinite().all()


def test_all_of_the_vocabulary_leaves_no_rest():
    logits = torch.randn(3, 4, requires_grad=True)
    found = topk_log_prob(logits, torch.arange(4).expand(3, 4))
    assert (found.log_rest == -math.inf).all()
    torch.testing.assert_close(found.log_prob, F.log_softmax(logits, -1))
    torch.testing.assert_close(
        gradient(found.log_prob[:, 0].sum(), logits), gradient(F.log_softmax(logits, -1)[:, 0].sum(), logits)
    )


@pytest.mark.parametrize("shape", [(0,), (2, 0), (3,)])
def test_nothing_and_no_labels_give_a_gradient_of_zeros(shape):
    logits = torch.full((*shape, V), math.nan, requires_grad=True)
    found = topk_log_prob(logits, torch.full((*shape, K), -1), labels=torch.full(shape, -100))
    sum(each.sum() for each in found[:4]).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_where_looking_would_make_the_host_wait_odd_indexes_are_none():
    index = torch.tensor([[3, 5, 3, -1, 3], [1, V, 2, -7, 2]])
    slots = _topk_slots.slots_of(index, torch.tensor([5, 9]), V)  # what an accelerator does, unchecked
    assert slots.present.tolist() == [[True, True] + [False] * 4, [True, False, True, False, False, True]]
    assert (slots.label.gather(-1, slots.source) == slots.label).all()


# --------------------------------------------------------------------------------------------- how it is used


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_compiled_step_is_one_graph_and_gives_the_same(temperature):
    logits, index, labels = case(dtype=torch.float32)

    def loss(x):
        return weighted(topk_log_prob(x, index, labels=labels, temperature=temperature)[:4])

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits), loss(logits))
    assert torch.equal(gradient(compiled(logits), logits), gradient(loss(logits), logits))


def test_autocast_and_checkpointing_change_nothing_and_logits_are_never_overwritten():
    logits, index, labels = case(dtype=torch.float32)
    before = logits.detach().clone()
    expected = gradient(weighted(topk_log_prob(logits, index, labels=labels)[:4]), logits)
    with torch.autocast("cpu", torch.bfloat16):
        found = topk_log_prob(logits, index, labels=labels)
    assert found.log_prob.dtype == torch.float32
    assert torch.equal(gradient(weighted(found[:4]), logits), expected)
    again = torch.utils.checkpoint.checkpoint(
        lambda x: weighted(topk_log_prob(x, index, labels=labels)[:4]), logits, use_reentrant=False
    )
    assert torch.equal(gradient(again, logits), expected)
    assert torch.equal(logits, before)


def test_double_backward_and_torch_func_are_refused_in_a_sentence():
    logits, index, _ = case()
    (first,) = torch.autograd.grad(topk_log_prob(logits, index).log_rest.sum(), logits, create_graph=True)
    with pytest.raises(ValueError, match="no gradient of its own"):
        first.sum().backward()
    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.grad(lambda x: topk_log_prob(x, index).log_rest.sum())(logits.detach())


LOGITS, INDEX = torch.zeros(2, V), torch.tensor([[0, 1], [2, 3]])
BAD = {
    "token ids beyond the vocabulary": ("index", (LOGITS, INDEX + V - 2), {}),
    "a token id twice": ("index", (LOGITS, torch.tensor([[0, 1], [3, 3]])), {}),
    "no K": ("index", (LOGITS, INDEX[:, :0]), {}),
    "more than the vocabulary": ("index", (LOGITS[:, :1], INDEX), {}),
    "float indexes": ("index", (LOGITS, INDEX.float()), {}),
    "other tokens": ("index", (LOGITS, INDEX[:1]), {}),
    "a list": ("index", (LOGITS, [[0, 1], [2, 3]]), {}),
    "integer logits": ("logits", (LOGITS.long(), INDEX), {}),
    "labels of another shape": ("labels", (LOGITS, INDEX), {"labels": INDEX}),
    "labels beyond the vocabulary": ("labels", (LOGITS, INDEX), {"labels": torch.tensor([0, V])}),
    "temperature 0": ("temperature", (LOGITS, INDEX), {"temperature": 0.0}),
    "negative temperature": ("temperature", (LOGITS, INDEX), {"temperature": -1.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name_in_one_line(name):
    argument, given, settings = BAD[name]
    with pytest.raises(ValueError, match=f"`{argument}`") as raised:
        topk_log_prob(*given, **settings)
    assert "\n" not in str(raised.value)


# ----------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_is_the_only_tensor_of_its_size(temperature):
    logits = torch.randn(64, 100_000).bfloat16().requires_grad_()
    index, labels = torch.arange(20).expand(64, 20), torch.arange(64)
    with single_threaded(), Allocations(logits) as forward:
        found = topk_log_prob(logits, index, labels=labels, temperature=temperature)
    with single_threaded(), Allocations(logits) as backward:
        weighted(found[:4]).backward()
    assert forward.largest <= 10 << 20
    assert backward.largest == logits.nbytes


PEAK = """
import sys
import torch
from lightning_pce.objectives.topk import distillation, topk_distillation

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

dtype, what = getattr(torch, sys.argv[1]), sys.argv[2]
torch.set_num_threads(2)
def made():
    logits = torch.empty(1024, 32000, dtype=dtype)
    for row in logits:  # no temporary as large as the logits
        row.copy_(torch.randn(32000))
    return logits
logits, teacher = made().requires_grad_(), made() if what == "full" else None
index = torch.rand(1024, 200).topk(20).indices
log_prob, labels = torch.full((1024, 20), -4.0), torch.zeros(1024, dtype=torch.long)
settings = dict(nll_weight=1.0, temperature=2.0 if what == "warm" else 1.0)
def loss(logits, some):
    if teacher is not None:
        return distillation(logits, teacher[some], labels=labels[some], **settings)
    columns = index[some], log_prob[some]
    return topk_distillation(logits, *columns, rest="bucket", labels=labels[some], **settings)
loss(logits.detach()[:8].clone().requires_grad_(), slice(8)).backward()
before = peak()
(found,) = torch.autograd.grad(loss(logits, slice(None)), logits)
print(peak() - before - logits.nbytes // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["k", "warm", "full"])
def test_at_most_16_mib_and_the_k_are_used_beyond_the_gradient(dtype, what):
    command = [sys.executable, "-c", PEAK, dtype, what]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert int(output) <= (16 << 10) + 1024 * 21 * 100 // 1024

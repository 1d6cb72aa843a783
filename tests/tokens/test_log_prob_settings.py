"""token_log_prob where torch does more than call it: compiled code, autocast, checkpointing; its memory."""

import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad

from lightning_pce import token_log_prob
from lightning_pce._threads import single_threaded
from lightning_pce.tokens._log_prob_operator import gradient_of_labels, scored_labels
from tests.helpers.threads import count_of_a_new_thread
from tests.helpers.token_cases import VIEW_NAMES, VIEWS, Allocations, V, tokens


def loss_of(logits, labels):
    return -token_log_prob(logits, labels, shift=True).log_prob.mean()


def gradients(loss, logits, labels):
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, labels)
    value.backward()
    return value.detach(), leaf.grad


@pytest.mark.slow
def test_opcheck():
    logits, labels = tokens(2, 5, ignored=0.3)
    logits.requires_grad_()
    torch.library.opcheck(scored_labels, (logits, labels, -100, True))
    log_prob, logsumexp, _, peak, target = scored_labels(logits.detach(), labels, -100, True)
    plain = (logits.detach(), log_prob, logsumexp, peak, target, torch.ones_like(log_prob), None)
    torch.library.opcheck(gradient_of_labels, plain)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_whole_it_gives_the_same(backend):
    torch._dynamo.reset()
    logits, labels = tokens(3, 9, ignored=0.2)
    compiled = torch.compile(loss_of, fullgraph=True, backend=backend)
    for given, expected in zip(
        gradients(compiled, logits, labels), gradients(loss_of, logits, labels), strict=True
    ):
        torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="others, from 99 to 99"):
        compiled(logits, torch.full_like(labels, 99))


def test_autocast_changes_nothing():
    for dtype in (torch.float32, torch.bfloat16):
        logits, labels = tokens(3, 9, dtype=dtype)
        value, grad = gradients(loss_of, logits, labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            within = gradients(loss_of, logits, labels)
        assert within[0].dtype == torch.float32
        assert torch.equal(within[0], value)
        assert torch.equal(within[1], grad)


def test_gradient_checkpointing_and_a_scaled_loss():
    hidden, head = torch.randn(4, 6, 8), torch.nn.Linear(8, V)
    labels = torch.randint(0, V, (4, 6))

    def whole(states):
        return loss_of(head(states), labels)

    found = []
    for call in (whole, lambda x: torch.utils.checkpoint.checkpoint(whole, x, use_reentrant=False)):
        states = hidden.clone().requires_grad_()
        (call(states) * 65536.0).backward()
        found.append(states.grad / 65536.0)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    states = hidden.clone().requires_grad_()
    whole(states).backward()
    torch.testing.assert_close(found[0], states.grad, rtol=1e-6, atol=1e-9)


def test_what_it_cannot_do_it_says_in_a_line():
    logits, labels = tokens(2, 5)
    leaf = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(leaf, labels), leaf, create_graph=True)
    with pytest.raises(ValueError, match=r"has no gradient of its own.*F.cross_entropy"):
        grad.sum().backward()
    with pytest.raises(ValueError, match=r"torch.func.*F.cross_entropy"):
        torch.func.grad(lambda x: loss_of(x, labels))(logits)
    with forward_ad.dual_level(), pytest.raises(ValueError, match="forward-mode"):
        loss_of(forward_ad.make_dual(logits, torch.ones_like(logits)), labels)


def test_logits_changed_before_the_backward_pass_are_noticed():
    logits, labels = tokens(2, 5)
    weight = logits.clone().requires_grad_()
    made = weight * 2
    loss = loss_of(made, labels)
    made.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_logits_are_never_overwritten_and_no_graph_is_kept_without_gradients():
    logits, labels = tokens(2, 5)
    before = logits.clone()
    gradients(loss_of, logits, labels)
    assert torch.equal(logits, before)
    with torch.no_grad():
        assert not loss_of(logits.requires_grad_(), labels).requires_grad
    with torch.inference_mode():
        loss_of(logits, labels)


def test_threads_give_the_same_bits_and_leave_no_count_behind():
    before = torch.get_num_threads()
    logits, labels = torch.randn(600, 8000), torch.randint(0, 8000, (600,))
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(gradients(lambda x, y: token_log_prob(x, y).log_prob.sum(), logits, labels)[1])
            assert torch.get_num_threads() == count_of_a_new_thread() == count
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_large_but_the_gradient_is_made(view, dtype):
    logits = view(torch.randn(4, 32, 100_000).to(dtype)).requires_grad_()
    labels = torch.zeros(4, 32, dtype=torch.long)
    scored = scored_labels(logits.detach(), labels, -100, False)
    with single_threaded(), Allocations(logits) as seen:  # a dispatch mode sees the operations of its thread
        grad = gradient_of_labels(
            logits.detach(), scored[0], scored[1], scored[3], scored[4], torch.rand(4, 32).round(), None
        )
    assert seen.largest == grad.untyped_storage().nbytes() == 4 * 32 * 100_000 * dtype.itemsize
    with single_threaded(), Allocations(logits, grad) as seen:
        scored_labels(logits.detach(), labels, -100, False)
    assert seen.largest <= 10 << 20


PEAK = """
import sys
import torch
from lightning_pce import token_log_prob

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

dtype, used = getattr(torch, sys.argv[1]), float(sys.argv[5])
tokens, vocabulary, threads = map(int, sys.argv[2:5])
torch.set_num_threads(threads)
logits = torch.empty(tokens, vocabulary, dtype=dtype)
for row in logits:  # no temporary as large as the logits
    row.copy_(torch.randn(vocabulary))
labels = torch.zeros(tokens, dtype=torch.long)
weights = (torch.rand(tokens) < used).float()
token_log_prob(logits[:2].requires_grad_(), labels[:2]).log_prob.sum().backward()
logits = logits.detach().requires_grad_()
before = peak()
(token_log_prob(logits, labels).log_prob * weights).sum().backward()
print(peak() - before - logits.grad.numel() * logits.grad.element_size() // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("dtype", "shape", "threads", "used"),
    [
        ("float32", (1024, 32_000), 1, 1.0),
        ("float32", (1024, 32_000), 16, 0.3),
        ("bfloat16", (1024, 32_000), 2, 0.3),
        ("float32", (64, 262_144), 16, 1.0),
        ("bfloat16", (64, 262_144), 16, 0.5),
    ],
)
def test_at_most_16_mib_are_used_beyond_the_gradient(dtype, shape, threads, used):
    command = [sys.executable, "-c", PEAK, dtype, *map(str, (*shape, threads, used))]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert int(output) <= 16 << 10

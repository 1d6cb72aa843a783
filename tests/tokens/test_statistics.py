from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_pce._threads import single_threaded
from lightning_pce.tokens.kernels import compile as compiled
from lightning_pce.tokens.kernels import triton_works
from lightning_pce.tokens.statistics import STATISTICS, token_cross_entropy, token_statistics
from tests.helpers.token_stats_cases import assert_statistics, hard_rows
from tests.helpers.token_stats_cases import reference as reference_statistics

V = 61
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def tokens(*shape, dtype=torch.float32, ignored=0.0, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(*shape, V, generator=random)).to(dtype)
    labels = torch.randint(0, V, shape, generator=random)
    return logits, torch.where(torch.rand(shape, generator=random) < ignored, -100, labels)


def reference(logits, labels, ignore_index=-100):
    flat = F.cross_entropy(
        logits.double().reshape(-1, logits.shape[-1]),
        labels.reshape(-1).long(),
        reduction="none",
        ignore_index=ignore_index,
    )
    return flat.reshape(labels.shape)


def assert_losses(actual, expected):
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (33,), (4, 33)])
def test_losses_are_float32_and_those_of_the_logits_as_stored(dtype, shape):
    logits, labels = tokens(*shape, dtype=dtype)
    losses, valid, invalid = token_cross_entropy(logits, labels)
    assert losses.shape == valid.shape == invalid.shape == shape
    assert_losses(losses, reference(logits, labels))
    assert valid.dtype == invalid.dtype == torch.bool
    assert valid.all()
    assert not invalid.any()


def test_bfloat16_logits_do_not_give_losses_of_8_bits():
    logits, labels = tokens(4, 33, dtype=torch.bfloat16)
    losses, _, _ = token_cross_entropy(logits, labels)
    rounded = reference(logits, labels).bfloat16().float()
    assert (losses != rounded).float().mean() > 0.9
    assert_losses(losses, reference(logits, labels))


def test_many_rows_of_a_large_vocabulary_are_all_scored():
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 41, 32_001, generator=random)  # more than one chunk
    labels = torch.randint(0, 32_001, (3, 41), generator=random)
    assert_losses(token_cross_entropy(logits, labels)[0], reference(logits, labels))


def test_losses_of_near_certain_tokens_keep_their_relative_error():
    lead = torch.linspace(0, 45, 91)
    logits = torch.zeros(91, V)
    logits[:, 5] = lead
    losses, _, _ = token_cross_entropy(logits, torch.full((91,), 5))
    expected = torch.log1p((V - 1) * (-lead.double()).exp())
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, -1, 7, 10_000])
def test_ignored_tokens_are_not_valid_and_have_loss_0(ignore_index, grad):
    logits, labels = tokens(4, 33)
    labels[:, ::3] = ignore_index
    logits.requires_grad_(grad)
    losses, valid, invalid = token_cross_entropy(logits, labels, ignore_index=ignore_index)
    counted = labels != ignore_index
    assert torch.equal(valid, counted)
    assert not invalid.any()
    assert (losses[~counted] == 0).all()
    assert_losses(losses.detach()[counted], reference(logits.detach()[counted], labels[counted]))


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
def test_with_shift_position_t_is_scored_against_label_t_plus_1(shape):
    logits, labels = tokens(*shape, ignored=0.2)
    losses, valid, _ = token_cross_entropy(logits, labels, shift=True)
    assert losses.shape == valid.shape == shape
    assert not valid[..., -1].any()
    assert (losses[..., -1] == 0).all()
    assert torch.equal(valid[..., :-1], labels[..., 1:] != -100)
    assert_losses(losses[..., :-1], reference(logits[..., :-1, :], labels[..., 1:]))


def test_with_shift_the_last_position_is_not_valid_whatever_ignore_index_is():
    logits, labels = tokens(2, 9)
    _, valid, _ = token_cross_entropy(logits, labels, shift=True, ignore_index=3)
    assert not valid[:, -1].any()
    assert torch.equal(valid[:, :-1], labels[:, 1:] != 3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("shift", [False, True])
def test_labels_of_every_integer_dtype_give_the_same(dtype, shift):
    logits, labels = tokens(2, 9)
    losses, valid, _ = token_cross_entropy(logits, labels.to(dtype), shift=shift)
    expected_losses, expected_valid, _ = token_cross_entropy(logits, labels, shift=shift)
    assert torch.equal(valid, expected_valid)
    assert torch.equal(losses, expected_losses)


@pytest.mark.parametrize("shift", [False, True])
def test_every_byte_is_a_token_when_labels_are_uint8(shift):
    labels = torch.arange(256).reshape(1, 256)  # 156 is -100 modulo 256
    logits = torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0))
    _, valid, _ = token_cross_entropy(logits, labels.byte(), shift=shift)
    assert valid.sum() == (255 if shift else 256)


VIEWS = [
    lambda logits: logits.transpose(0, 1).contiguous().transpose(0, 1),
    lambda logits: torch.cat([logits, -logits], dim=-1)[..., : logits.shape[-1]],
    lambda logits: torch.cat([logits, -logits], dim=1)[:, : logits.shape[1]],
    lambda logits: logits.movedim(-1, 1).contiguous().movedim(1, -1),
]
VIEW_NAMES = ["transposed", "padded vocabulary cut", "sequence cut", "channels first"]


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
@pytest.mark.parametrize("shift", [False, True])
def test_non_contiguous_logits_give_the_same(view, shift):
    logits, labels = tokens(4, 17, ignored=0.2)
    strided = view(logits)
    assert not strided.is_contiguous()
    losses, valid, _ = token_cross_entropy(strided, labels, shift=shift)
    expected_losses, expected_valid, _ = token_cross_entropy(logits, labels, shift=shift)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-6, atol=1e-6)
    assert torch.equal(valid, expected_valid)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad", [False, True])
def test_logits_and_labels_are_not_modified(dtype, grad):
    logits, labels = tokens(4, 17, dtype=dtype, ignored=0.2)
    logits_before, labels_before = logits.clone(), labels.clone()
    token_cross_entropy(logits.requires_grad_(grad), labels, shift=True)
    assert torch.equal(logits, logits_before)
    assert torch.equal(labels, labels_before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [False, True])
def test_gradients_are_those_of_cross_entropy(dtype, shift):
    logits, labels = tokens(3, 17, dtype=dtype, ignored=0.2)
    logits.requires_grad_()
    losses, _, _ = token_cross_entropy(logits, labels, shift=shift)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)

    wanted = logits.detach().clone().requires_grad_()
    rows, targets = (wanted[:, :-1], labels[:, 1:]) if shift else (wanted, labels)
    total = F.cross_entropy(rows.float().reshape(-1, V), targets.reshape(-1), reduction="sum")
    (expected,) = torch.autograd.grad(total, wanted)
    assert expected.abs().sum() > 1
    torch.testing.assert_close(gradient, expected)


def test_no_graph_is_kept_when_gradients_are_off():
    logits, labels = tokens(3, 17)
    logits.requires_grad_()
    with torch.no_grad():
        losses, _, _ = token_cross_entropy(logits, labels)
    assert not losses.requires_grad
    assert token_cross_entropy(logits, labels)[0].requires_grad


@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0)])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_an_empty_batch_gives_empty_results(shape, grad, shift):
    logits = torch.zeros(*shape, V, requires_grad=grad)
    results = token_cross_entropy(logits, torch.zeros(shape, dtype=torch.long), shift=shift)
    assert [tuple(result.shape) for result in results] == [shape] * 3
    assert results[0].dtype == torch.float32


def message_of(logits, labels, function=token_cross_entropy, **settings):
    with pytest.raises(ValueError) as error:
        function(logits, labels, **settings)
    return str(error.value)


def test_mismatched_shapes_are_shown():
    message = message_of(torch.zeros(2, 9, V), torch.zeros(3, 9, dtype=torch.long))
    assert "`labels`" in message
    assert f"(2, 9, {V})" in message
    assert "(3, 9)" in message
    assert "shift" not in message


@pytest.mark.parametrize("length", [8, 10])
def test_shapes_off_by_one_position_come_with_a_hint(length):
    message = message_of(torch.zeros(2, 9, V), torch.zeros(2, length, dtype=torch.long))
    assert "`labels`" in message
    assert f"(2, 9, {V})" in message
    assert f"(2, {length})" in message
    assert "shift=True" in message


def test_logits_that_are_integers_are_refused():
    message = message_of(torch.zeros(2, 9, dtype=torch.long), torch.zeros(2, 9, dtype=torch.long))
    assert "`logits`" in message
    assert "int64" in message
    assert "(2, 9)" in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_labels_that_are_no_integers_are_refused(dtype):
    message = message_of(torch.zeros(2, 9, V), torch.zeros(2, 9, dtype=dtype))
    assert "`labels`" in message
    assert str(dtype) in message
    assert "(2, 9)" in message


@pytest.mark.parametrize("wrong", [V, V + 1000, -1, -101])
@pytest.mark.parametrize("grad", [False, True])
def test_labels_outside_the_vocabulary_are_refused_and_shown(wrong, grad):
    logits, labels = tokens(2, 9, ignored=0.3)
    labels[1, 4] = wrong
    message = message_of(logits.requires_grad_(grad), labels)
    assert "`labels`" in message
    assert f"{wrong}" in message
    assert f"{V}" in message
    assert "ignore_index=-100" in message


def test_minus_100_is_refused_when_ignore_index_is_another():
    logits, labels = tokens(2, 9)
    labels[0, 0] = -100
    message = message_of(logits, labels, ignore_index=-1)
    assert "-100" in message
    assert "ignore_index=-1" in message


def test_logits_without_a_vocabulary_are_refused():
    assert "`logits`" in message_of(torch.zeros(2, 9, 0), torch.zeros(2, 9, dtype=torch.long))


def test_shift_of_a_single_token_without_a_sequence_is_refused():
    assert "`labels`" in message_of(torch.zeros(V), torch.tensor(1), shift=True)


BACKENDS = [
    "eager",
    pytest.param("compile", marks=pytest.mark.slow),
]  # Triton's are in test_triton


@pytest.mark.parametrize("scale_and_offset", [(4.0, 0.0), (1.0, 50.0), (30.0, -200.0)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_statistic_of_hard_rows_is_that_of_float64(backend, dtype, scale_and_offset):
    scale, offset = scale_and_offset
    for vocabulary in (1, 2, 17, 1000, 5003):
        logits, labels = hard_rows(vocabulary, dtype, scale=scale, offset=offset)
        before = logits.clone()
        stats = token_statistics(logits, labels, backend=backend)
        assert_statistics(stats, reference_statistics(logits, labels))
        assert torch.equal(stats.valid, labels != -100)
        assert not stats.invalid.any()
        assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocabulary", [49_152, 262_144])
def test_large_vocabularies_lose_no_accuracy(vocabulary, backend):
    logits, labels = hard_rows(vocabulary, torch.float32)
    assert_statistics(token_statistics(logits, labels, backend=backend), reference_statistics(logits, labels))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rivals", [1, 50])
def test_cross_entropies_of_1e_minus_20_keep_their_relative_error(rivals, backend):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(200, rivals + 1, generator=random)
    logits[:, 0] += torch.linspace(0, 80, 200)
    labels = torch.zeros(200, dtype=torch.long)
    ce = token_statistics(logits, labels, statistics=("ce",), backend=backend).ce
    expected = reference_statistics(logits, labels)["ce"]
    assert expected.min() < 1e-30
    torch.testing.assert_close(ce.double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rank_is_1_exactly_where_the_label_is_the_argmax(dtype, backend):
    random = torch.Generator().manual_seed(0)
    logits = torch.randint(-3, 4, (64, 300), generator=random).to(dtype)  # ties in every row
    labels = torch.randint(0, 300, (64,), generator=random)
    labels[::2] = logits[::2].float().argmax(1)
    stats = token_statistics(logits, labels, backend=backend)
    assert torch.equal(stats.rank == 1, logits.float().argmax(1) == labels)
    assert torch.equal(stats.rank, reference_statistics(logits, labels)["rank"])
    top5 = torch.sort(logits.float(), dim=1, descending=True, stable=True).indices[:, :5]
    assert torch.equal(stats.rank <= 5, (top5 == labels[:, None]).any(1))
    assert (stats.margin[stats.rank == 1] == 0).all()


def test_what_has_no_distribution_or_does_not_count_is_among_no_top_k():
    logits = torch.zeros(4, V)
    logits[0, 0] = torch.nan
    logits[1] = -torch.inf
    logits[2, 0] = torch.inf
    stats = token_statistics(logits, torch.tensor([0, 0, 0, -100]))
    assert (stats.rank == V + 1).all()
    assert stats.ce[:3].isnan().all()
    assert stats.entropy[:3].isnan().all()
    assert stats.valid.tolist() == [True, True, True, False]


@pytest.mark.parametrize("name", STATISTICS)
def test_only_what_is_asked_for_is_returned(name):
    logits, labels = tokens(2, 9, ignored=0.3)
    stats, everything = token_statistics(logits, labels, statistics=(name,)), token_statistics(logits, labels)
    for other in STATISTICS:
        value = getattr(stats, other)
        if other == name:
            torch.testing.assert_close(value, getattr(everything, other), rtol=3e-7, atol=0)
        else:
            assert value is None
    assert stats.margin is None
    assert (stats.log_rank is None) == (name != "rank")


def test_margin_and_log_rank_follow_from_the_others():
    logits, labels = tokens(2, 9)
    stats = token_statistics(logits, labels)
    assert torch.equal(stats.margin, stats.max_prob - stats.target_prob)
    torch.testing.assert_close(stats.log_rank, stats.rank.double().log().float())


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 7])
def test_the_cross_entropy_and_its_mask_are_those_of_token_cross_entropy(shift, ignore_index):
    logits, labels = tokens(3, 33)
    labels[:, ::4] = ignore_index
    settings = {"ignore_index": ignore_index, "shift": shift}
    stats = token_statistics(logits, labels, statistics=("ce",), **settings)
    losses, valid, invalid = token_cross_entropy(logits, labels, **settings)
    assert torch.equal(stats.ce, losses)
    assert torch.equal(stats.valid, valid)
    assert torch.equal(stats.invalid, invalid)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
def test_statistics_of_non_contiguous_logits_are_the_same(view, backend):
    logits, labels = tokens(4, 17, ignored=0.2)
    stats = token_statistics(view(logits), labels, backend=backend)
    for value, expected in zip(stats, token_statistics(logits, labels), strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("backend", ["auto", "eager", "compile"])
@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0)])
def test_an_empty_batch_has_empty_statistics(shape, backend):
    stats = token_statistics(torch.zeros(*shape, V), torch.zeros(shape, dtype=torch.long), backend=backend)
    assert [tuple(value.shape) for value in stats] == [shape] * 7
    assert stats.ce.dtype == torch.float32
    assert stats.rank.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (33,)])
def test_statistics_do_not_depend_on_autocast_or_inference_mode(shape, dtype):
    logits, labels = tokens(*shape, dtype=dtype)
    expected = token_statistics(logits, labels)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        stats = token_statistics(logits, labels)
    assert all(torch.equal(value, other) for value, other in zip(stats, expected, strict=True))


class Allocations(TorchDispatchMode):
    """The operations that run, and the largest new tensor among their results, in bytes."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_any_strides_are_never_copied_whole(view, dtype):
    logits = view(torch.randn(4, 32, 100_000).to(dtype))
    labels = torch.zeros(4, 32, dtype=torch.long)
    with single_threaded(), Allocations(logits) as seen:  # a dispatch mode sees the operations of its thread
        token_statistics(logits, labels)
        token_cross_entropy(logits, labels)
    assert 1 << 19 < seen.largest <= 10 << 20


def test_the_cross_entropy_alone_compares_no_logits():
    logits, labels = tokens(4, 33)
    with Allocations(logits) as alone:
        token_statistics(logits, labels, statistics=("ce", "target_prob", "max_prob"))
    with Allocations(logits) as everything:
        token_statistics(logits, labels)
    extra = {"gt", "eq", "mul_"}
    assert extra <= everything.names
    assert not extra & alone.names - {"eq"}  # the labels are compared too


PEAK = """
import sys
import torch
from lightning_pce.tokens.statistics import token_statistics

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

backend, dtype = sys.argv[1], getattr(torch, sys.argv[2])
tokens, vocabulary, threads = map(int, sys.argv[3:])
torch.set_num_threads(threads)
logits = torch.empty(tokens, vocabulary, dtype=dtype)
for row in logits:  # no temporary as large as the logits
    row.copy_(torch.randn(vocabulary))
labels = torch.zeros(tokens, dtype=torch.long)
token_statistics(logits[:2], labels[:2], backend=backend)
before = peak()
kept = [token_statistics(logits[i:], labels[i:], backend=backend) for i in range(0, tokens, tokens // 8)]
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("backend", "dtype", "shape", "threads"),
    [
        ("eager", "float32", (1024, 32_000), 2),
        ("eager", "bfloat16", (1024, 32_000), 16),
        ("eager", "float32", (64, 262_144), 2),
        ("eager", "float32", (64, 262_144), 16),
        pytest.param("compile", "float32", (1024, 32_000), 2, marks=pytest.mark.slow),
        pytest.param("compile", "bfloat16", (64, 262_144), 2, marks=pytest.mark.slow),
    ],
)
def test_at_most_16_mib_are_used_beyond_the_logits(backend, dtype, shape, threads):
    command = [sys.executable, "-c", PEAK, backend, dtype, *map(str, (*shape, threads))]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    assert int(output) <= 16 << 10


@pytest.mark.slow
def test_compiled_code_serves_every_shape():
    torch._dynamo.reset()
    token_statistics(*tokens(3, 5), backend="compile")
    with torch._dynamo.config.patch(error_on_recompile=True), warnings.catch_warnings():
        warnings.simplefilter("error")
        for shape, vocabulary in [((7, 9), V), ((64,), 300), ((2, 3, 11), 45)]:
            logits = torch.randn(*shape, vocabulary)
            labels = torch.randint(0, vocabulary, shape)
            stats = token_statistics(logits, labels, backend="compile")
            assert_statistics(stats, reference_statistics(logits, labels))


def test_where_compiling_fails_eager_operations_take_its_place(monkeypatch):
    def fails(everything):
        def compiled(*_):
            raise RuntimeError("No working C++ compiler found.\nDetails.")

        return compiled

    monkeypatch.setattr(compiled, "_compiled", fails)
    monkeypatch.setattr(compiled, "_failed", set())
    logits, labels = tokens(3, 17)
    with pytest.warns(UserWarning, match="No working C\\+\\+ compiler found"):
        stats = token_statistics(logits, labels, backend="compile")
    assert_statistics(stats, reference_statistics(logits, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        token_statistics(logits, labels, backend="compile")


def test_without_torch_compile_no_operation_copies_all_logits(monkeypatch):
    monkeypatch.setattr(compiled, "_compiled", lambda everything: compiled._everything)
    monkeypatch.setattr(compiled, "_failed", set())
    logits, labels = tokens(3, 17)
    with pytest.warns(UserWarning, match="torch.compile is disabled"):
        stats = token_statistics(logits, labels, backend="compile")
    assert_statistics(stats, reference_statistics(logits, labels))


@pytest.mark.parametrize("wrong", [("ce", "accuracy"), "ce", ("top",)])
def test_unknown_statistics_are_refused_and_shown(wrong):
    message = message_of(torch.zeros(2, V), torch.tensor([0, 1]), token_statistics, statistics=wrong)
    assert "`statistics`" in message
    assert "entropy" in message
    assert repr(wrong) in message


def test_unknown_backends_are_refused_and_shown():
    message = message_of(torch.zeros(2, V), torch.tensor([0, 1]), token_statistics, backend="numpy")
    assert "`backend`" in message
    assert "'numpy'" in message
    assert "eager" in message


def test_the_shapes_dtypes_and_labels_of_token_statistics_are_checked():
    assert "(3,)" in message_of(torch.zeros(2, V), torch.tensor([0, 1, 2]), token_statistics)
    assert f"{V}" in message_of(torch.zeros(2, V), torch.tensor([0, V]), token_statistics)
    assert "int64" in message_of(torch.zeros(2, V).long(), torch.tensor([0, 1]), token_statistics)


def test_sharded_logits_are_refused_with_what_to_do(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        try:
            from torch.distributed.tensor import Shard, distribute_tensor
        except ImportError:  # before torch 2.5
            from torch.distributed._tensor import Shard, distribute_tensor
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        logits = distribute_tensor(torch.zeros(2, 9, V), mesh, [Shard(2)])
        for function in (token_statistics, token_cross_entropy):
            message = message_of(logits, torch.zeros(2, 9, dtype=torch.long), function)
            assert "DTensor" in message
            assert "Shard(dim=2)" in message
            assert "full_tensor" in message
    finally:
        dist.destroy_process_group()


def test_where_triton_can_not_be_launched_automatic_choice_warns_and_is_eager():
    pytest.importorskip("triton")
    triton_works.cache_clear()
    with pytest.warns(UserWarning, match="Triton does not work on cuda:0"):
        assert not triton_works(0)
    triton_works.cache_clear()

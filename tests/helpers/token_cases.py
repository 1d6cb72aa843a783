"""Logits and labels in every layout, rows that are hard to score, their statistics in float64, messages."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_pce.tokens.statistics import token_cross_entropy

INF, NAN = float("inf"), float("nan")
V = 61
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def tokens(*shape, dtype=torch.float32, ignored=0.0, seed=0):
    """Logits ``[*shape, V]`` and labels ``[*shape]``, a share of which is -100."""
    random = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(*shape, V, generator=random)).to(dtype)
    labels = torch.randint(0, V, shape, generator=random)
    return logits, torch.where(torch.rand(shape, generator=random) < ignored, -100, labels)


VIEWS = [
    lambda logits: logits.transpose(0, 1).contiguous().transpose(0, 1),
    lambda logits: torch.cat([logits, -logits], dim=-1)[..., : logits.shape[-1]],
    lambda logits: torch.cat([logits, -logits], dim=1)[:, : logits.shape[1]],
    lambda logits: logits.movedim(-1, 1).contiguous().movedim(1, -1),
]
VIEW_NAMES = ["transposed", "padded vocabulary cut", "sequence cut", "channels first"]


def message_of(logits, labels, function=token_cross_entropy, **settings):
    """What the error says that these arguments raise."""
    with pytest.raises(ValueError) as error:
        function(logits, labels, **settings)
    return str(error.value)


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


def reference(logits, labels, ignore_index=-100):
    """Statistics in float64 of the logits as stored, by other formulas than the package's."""
    vocabulary = logits.shape[-1]
    stored, y = logits.reshape(-1, vocabulary).double(), labels.reshape(-1)
    top = stored.amax(1, keepdim=True)
    x = stored - top  # next to -3e38 even a float64 has no room for the logarithm of a vocabulary
    valid = y != ignore_index
    y = torch.where(valid, y, 0)[:, None]
    own = x.gather(1, y)
    others = x.scatter(1, y, -INF).logsumexp(1, keepdim=True)
    gap = others - own
    ce = torch.where(gap > 0, gap + (-gap).exp().log1p(), gap.exp().log1p())
    log_p = x.log_softmax(1)
    entropy = -torch.where(log_p == -INF, 0.0, log_p.exp() * log_p).sum(1, keepdim=True)
    order = torch.sort(stored, dim=1, descending=True, stable=True).indices
    rank = (order == y).int().argmax(1, keepdim=True) + 1
    proper = top.isfinite()
    counted = valid[:, None]

    def shaped(value, broken, missing):
        return torch.where(counted, torch.where(proper, value, broken), missing).reshape(labels.shape)

    return {
        "ce": shaped(ce, NAN, 0.0),
        "entropy": shaped(entropy, NAN, 0.0),
        "target_prob": shaped((-ce).exp(), NAN, 0.0),
        "max_prob": shaped(log_p.amax(1, keepdim=True).exp(), NAN, 0.0),
        "rank": shaped(rank, vocabulary + 1, vocabulary + 1),
    }


def hard_rows(vocabulary, dtype, *, scale=4.0, offset=0.0, seed=0):
    """Logits ``[3, 8, V]`` and labels ``[3, 8]``: everything a model and its masks may come up with."""
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(3, 8, vocabulary, generator=random) * scale + offset).to(dtype)
    labels = torch.randint(0, vocabulary, (3, 8), generator=random)
    labels[0, 3] = labels[1, 6] = -100
    logits[0, 3] = NAN  # garbage where nothing counts
    if vocabulary == 1:
        return logits, labels
    last = vocabulary - 1
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)

    def own(i, j):
        return int(labels[i, j])

    labels[0, 0], logits[0, 0, : vocabulary // 2] = last, -INF  # the first half is masked
    logits[0, 1, own(0, 1)] = -INF  # the target is
    logits[0, 2] = logits[0, 2, 0].item()  # all are equal
    logits[0, 4, own(0, 4)] = 60 + float(logits[0, 4].float().amax())  # 1 - p is 1e-26
    logits[0, 5] = -INF
    logits[0, 5, own(0, 5)] = 1.0  # only the target is left
    logits[0, 6, (own(0, 6) + 1) % vocabulary] = logits[0, 6, own(0, 6)]  # one tie
    logits[0, 7] = -INF  # nothing is left
    logits[1, 0, vocabulary // 3] = NAN
    logits[1, 1] = torch.round(logits[1, 1].float() / 4).to(dtype)  # many ties
    labels[1, 2], logits[1, 2, vocabulary // 2 :] = last, -INF  # -inf tied with -inf
    logits[1, 3, last] = INF
    logits[1, 4, own(1, 4)] = INF
    logits[1, 5, own(1, 5)] = NAN
    logits[1, 7] = lowest  # masked by the smallest number
    logits[2, 0, : vocabulary // 2] = lowest
    logits[2, 1, own(2, 1)] = lowest
    labels[2, 2], labels[2, 3] = 0, last
    labels[2, 4] = int(logits[2, 4].argmax())
    labels[2, 5] = labels[2, 6] = vocabulary // 2
    logits[2, 5] = torch.where(torch.arange(vocabulary) % 2 == 0, 3.0, -INF).to(dtype)
    logits[2, 6] = 0.0
    return logits, labels


def assert_statistics(actual, expected):
    """Cross-entropies within 1e-6 of their value, ranks exact, NaN and inf where they belong."""
    rank = actual.rank
    assert rank.dtype == torch.int64
    assert torch.equal(rank, expected["rank"]), (rank, expected["rank"])
    tolerances = {"ce": (1e-6, 1e-36), "entropy": (4e-6, 3e-6), "target_prob": (1e-5, 1e-37)}
    tolerances["max_prob"] = (2e-6, 0)
    for name, (relative, absolute) in tolerances.items():
        value = getattr(actual, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value.double(),
            expected[name],
            rtol=relative,
            atol=absolute,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )

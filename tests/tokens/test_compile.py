"""backend="compile": one compilation for all shapes, and eager operations where it does not work."""

import warnings

import pytest
import torch

from lightning_pce.tokens.kernels import compile as compiled
from lightning_pce.tokens.statistics import token_statistics
from tests.helpers.token_cases import V, assert_statistics, reference, tokens


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
            assert_statistics(stats, reference(logits, labels))


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
    assert_statistics(stats, reference(logits, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        token_statistics(logits, labels, backend="compile")


def test_without_torch_compile_no_operation_copies_all_logits(monkeypatch):
    monkeypatch.setattr(compiled, "_compiled", lambda everything: compiled._everything)
    monkeypatch.setattr(compiled, "_failed", set())
    logits, labels = tokens(3, 17)
    with pytest.warns(UserWarning, match="torch.compile is disabled"):
        stats = token_statistics(logits, labels, backend="compile")
    assert_statistics(stats, reference(logits, labels))

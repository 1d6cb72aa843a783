"""Chunks in threads: memory that is not enough, errors, and models of other kinds than Llama."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from lightning_pce._errors import UserError
from lightning_pce.metrics.tail_tokens import TailTokens
from lightning_pce.scoring.chunk_scoring import ChunkScorer, run
from lightning_pce.scoring.forward import Batch, Scorer, is_out_of_memory
from lightning_pce.scoring.tokenizing import Tokenized, TokenizedDocument
from lightning_pce.scoring.windows import plan

VOCABULARY = 11


class Small(nn.Module):
    """Logits of a token from itself and the one before; more rows at once than there is room for raise."""

    def __init__(self, rows=10**9, error="DefaultCPUAllocator: not enough memory: you tried to allocate"):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))
        self.rows, self.error, self.sizes = rows, error, []

    def forward(self, input_ids, use_cache):
        assert use_cache is False
        self.sizes.append(input_ids.shape[0])
        if input_ids.shape[1] > 1 and len(input_ids) > self.rows:
            raise RuntimeError(self.error)
        before = nn.functional.pad(input_ids, (1, 0))[:, :-1]
        return self.table[input_ids] + self.table[before]


def documents(lengths):
    random = np.random.default_rng(0)
    for number, length in enumerate(lengths):
        ids = random.integers(0, VOCABULARY, length).astype(np.int32)
        size = np.ones(length, np.int32)
        known = np.arange(length) > 0
        yield TokenizedDocument(
            str(number), str(number), number, "", ids, known, None, size, np.arange(length), known
        )


DATA = Tokenized(tuple(documents([8] * 12 + [5] * 9)), (), None, "all tokens", "")
CHUNKS = plan(DATA.documents, 8, batch_tokens=64)


def scored(model, streams=1):
    found, seen = {}, []
    scorer = ChunkScorer(Scorer(model, piece_bytes=1 << 20), DATA, 64, seen.append)
    run(scorer, CHUNKS, lambda chunk, tokens, totals: found.update({chunk.number: (tokens, totals)}), streams)
    assert sum(seen) == 12 * 7 + 9 * 4
    return [found[number] for number in sorted(found)]


def test_a_chunk_that_memory_is_not_enough_for_is_done_in_halves_and_says_so():
    model = Small(rows=3)
    halved = scored(model)
    assert max(model.sizes) == 8
    assert [int(totals.halved) for _, totals in halved] == [2] * len(CHUNKS)
    for (tokens, totals), (others, whole) in zip(halved, scored(Small()), strict=True):
        assert int(whole.halved) == 0
        np.testing.assert_allclose(tokens.ce, others.ce, atol=1e-6)
        np.testing.assert_array_equal(tokens.rank, others.rank)
        np.testing.assert_allclose(totals.document_totals, whole.document_totals, atol=1e-5)


def test_a_single_window_that_is_too_much_is_one_line():
    with pytest.raises(UserError, match="single window of 8 tokens: give a smaller --context"):
        scored(Small(rows=0))


@pytest.mark.parametrize("streams", [1, 2])
def test_other_errors_end_all_threads(streams):
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        scored(Small(rows=0, error="mat1 and mat2 shapes cannot be multiplied"), streams)
    assert threading.active_count() == before


def test_what_is_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes"))
    assert not is_out_of_memory(ValueError("out of memory"))


def batch():
    ids = [np.arange(9, dtype=np.int32), np.array([3, 1, 2], np.int32)]
    row, place = np.array([0, 0, 1, 0]), np.array([1, 8, 2, 4])
    return Batch(ids, row, place, row, place)


def models():
    """Causal language models whose output layers do different things to their logits."""
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        GraniteConfig,
        GraniteForCausalLM,
    )

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": None}
    torch.manual_seed(0)
    return {
        "softcap": (Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, head_dim=4)), False),
        "scaled": (GraniteForCausalLM(GraniteConfig(**sizes, **heads, logits_scaling=0.25)), False),
        "other names": (
            GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2)),
            False,
        ),
        "no hidden states": (Small(), True),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softcap", "scaled", "other names", "no hidden states"])
def test_scores_are_those_of_the_models_own_logits(kind):
    model, holds = models()[kind]
    model.eval()
    scorer = Scorer(model, piece_bytes=4 * VOCABULARY * 3)  # in two pieces
    assert scorer.holds_all_logits == holds
    assert scorer.rows == 3
    tail = TailTokens(2)
    for each in (scorer, scorer.another()):
        found = each.score(batch(), tail)
        for index, (row, place) in enumerate(zip(batch().row, batch().place, strict=True)):
            ids = torch.from_numpy(batch().ids[row]).long()
            with torch.no_grad():
                outputs = model(input_ids=ids[None], use_cache=False)
            logits = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
            log_p = logits[0, place - 1].double().log_softmax(-1)
            assert found.ce[index] == pytest.approx(-float(log_p[ids[place]]), abs=1e-5)
            assert found.entropy[index] == pytest.approx(-float((log_p.exp() * log_p).sum()), abs=1e-5)
            assert found.rank[index] == int((log_p > log_p[ids[place]]).sum()) + 1
    worst = int(np.argmax(found.ce))
    kept = tail.compute()
    assert (int(kept.document[0]), int(kept.position[0])) == (batch().row[worst], batch().place[worst])


def test_threads_share_weights_and_nothing_else():
    scorer = Scorer(Small(), piece_bytes=1 << 20)
    other = scorer.another()
    assert other.model is not scorer.model
    assert other.model.table is scorer.model.table

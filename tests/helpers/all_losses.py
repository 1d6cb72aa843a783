"""All losses of documents in float64, by a loop over windows as in transformers' guide to perplexity."""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class AllLosses:
    """A tensor for each document: of all its tokens but the first."""

    model: Any
    tokenizer: Any
    ids: list = field(default_factory=list)
    spans: list = field(default_factory=list)
    losses: list = field(default_factory=list)
    entropies: list = field(default_factory=list)
    ranks: list = field(default_factory=list)

    def add(self, text, context, stride):
        """Score a text by itself."""
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"])
        parts, done = [], 0
        for begin in range(0, len(ids), stride):
            end = min(begin + context, len(ids))
            new = max(0, done - begin - 1)
            parts.append([each[new:] for each in self.of_window(ids[begin:end])])
            done = end
            if end == len(ids):
                break
        self.ids.append(ids)
        self.spans.append(encoded["offset_mapping"])
        for kept, found in zip(
            (self.losses, self.entropies, self.ranks), zip(*parts, strict=True), strict=True
        ):
            kept.append(torch.cat(found))

    @torch.inference_mode()
    def of_window(self, ids):
        """Loss, entropy and rank of all tokens of a window but the first."""
        logits = self.model(input_ids=ids[None]).logits[0, :-1].double()
        log_p, labels = logits.log_softmax(-1), ids[1:, None]
        own = log_p.gather(-1, labels)
        return -own[:, 0], -(log_p.exp() * log_p).sum(-1), (log_p > own).sum(-1) + 1


def all_losses(checkpoint, texts=(), *, context, stride, **more):
    """The losses of texts by the model and the tokenizer of a checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, **more).eval()
    found = AllLosses(model, AutoTokenizer.from_pretrained(checkpoint, **more))
    for text in texts:
        found.add(text, context, stride)
    return found

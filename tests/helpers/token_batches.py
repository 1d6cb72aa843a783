"""Random logits, labels, losses and groups, and the losses of logits by torch's own function."""

import torch
import torch.nn.functional as F

V = 29
GROUP_NAMES = ("prompt", "completion")


def batch(seed=0, shape=(4, 16), ignored=0.3, vocabulary=V):
    """Logits ``[*shape, vocabulary]`` and labels ``[*shape]``, a share of which is -100."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, vocabulary, generator=random)
    labels = torch.randint(0, vocabulary, shape, generator=random)
    return logits, torch.where(torch.rand(shape, generator=random) < ignored, -100, labels)


def grouped_batch(seed=0, shape=(4, 16), ignored=0.3):
    """Logits, labels, and a group for each label, 0 more often than 1."""
    random = torch.Generator().manual_seed(1000 + seed)
    return *batch(seed, shape, ignored), (torch.rand(shape, generator=random) < 0.3).long()


def random_losses(seed=0, n=100):
    """Losses ``[n]`` between 1 and 6 nats."""
    return 1 + 5 * torch.rand(n, generator=torch.Generator().manual_seed(seed))


def grouped_losses(seed=0, n=100):
    """Losses ``[n]``, and the group of each, 0 or 1."""
    random = torch.Generator().manual_seed(1000 + seed)
    return random_losses(seed, n), torch.randint(0, 2, (n,), generator=random)


def losses_of(logits, labels, ignore_index=-100):
    """The loss of each token, 0 where its label is ignored: float32 in the shape of the labels."""
    logits, flat = logits.float().flatten(0, -2), labels.flatten()
    losses = F.cross_entropy(logits, flat, reduction="none", ignore_index=ignore_index)
    return losses.view(labels.shape)


def counted_losses(logits, labels, ignore_index=-100):
    """The losses ``[n]`` of the tokens whose label is not ignored."""
    return losses_of(logits, labels, ignore_index)[labels != ignore_index]

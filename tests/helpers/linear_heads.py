"""Hidden states with an output layer, as a weight and as modules."""

import torch

H, V = 24, 311


def layer(*shape, dtype=torch.float32, ignored=0.0, seed=0, vocabulary=V, width=H):
    """Hidden states ``[*shape, H]``, weight ``[V, H]``, bias ``[V]`` and labels, a share of which is -100."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, width, generator=random).to(dtype)
    head = (torch.randn(vocabulary, width, generator=random) * 0.3).to(dtype)
    bias = torch.randn(vocabulary, generator=random).to(dtype)
    labels = torch.randint(0, vocabulary, shape, generator=random)
    return hidden, head, bias, torch.where(torch.rand(shape, generator=random) < ignored, -100, labels)


def linear_layer(head, bias):
    """An ``nn.Linear`` with this weight and bias."""
    made = torch.nn.Linear(head.shape[1], head.shape[0], dtype=head.dtype)
    made.weight.data, made.bias.data = head, bias
    return made


class WithAdapter(torch.nn.Module):
    """An output layer with a low-rank update beside it, as LoRA makes of one."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base, self.scaling = base, 2.0
        self.down = torch.nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, x):
        """Logits."""
        return self.base(x) + self.scaling * self.up(self.down(x))

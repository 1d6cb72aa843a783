"""Groups of tokens from the mixin under a real Trainer."""

import re

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.distributions import exact_quantile, exact_trimmed_mean
from tests.helpers.lit_modules import IGNORED, LitLM, make_batches, make_trainer
from tests.helpers.token_batches import GROUP_NAMES


class GroupsLM(LitLM):
    """The first two tokens of a sequence are its prompt."""

    def validation_step(self, batch, batch_idx):
        labels = batch["labels"]
        group = (torch.arange(labels.shape[1]) >= 2).long().expand(labels.shape)
        self.update_percentile_ce(self(batch), labels, group=group)


def validated_losses(module, batches):
    losses, group = [], []
    for one in batches:
        logits, labels = module(one).detach().float(), one["labels"]
        kept = labels != IGNORED
        losses.append(F.cross_entropy(logits[kept], labels[kept], reduction="none"))
        group.append((torch.arange(labels.shape[1]) >= 2).expand(labels.shape)[kept])
    return torch.cat(losses), torch.cat(group)


def test_validation_logs_each_group_under_its_name(tmp_path):
    batches = make_batches(6, seed=3)
    module = GroupsLM(percentiles=(50, 95), groups=GROUP_NAMES)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    (result,) = make_trainer(tmp_path).validate(module, loader, verbose=False)
    kinds = ("mean", "p50", "p95", "trimmed_mean")
    assert sorted(result) == sorted(
        f"val_ce_{prefix}{kind}" for prefix in ("", "prompt_", "completion_") for kind in kinds
    )
    losses, group = validated_losses(module, batches)
    for prefix, own in (("", losses), ("prompt_", losses[~group]), ("completion_", losses[group])):
        assert result[f"val_ce_{prefix}mean"] == pytest.approx(own.mean().item(), rel=1e-6)
        for p in (50, 95):
            wanted = exact_quantile(own, p / 100).item()
            assert result[f"val_ce_{prefix}p{p}"] == pytest.approx(wanted, rel=1e-6)
        wanted = exact_trimmed_mean(own, 0.05, 0.95)
        assert result[f"val_ce_{prefix}trimmed_mean"] == pytest.approx(wanted, rel=1e-6)
    assert result["val_ce_prompt_p50"] != result["val_ce_completion_p50"]


def test_a_second_validation_holds_nothing_of_the_first(tmp_path):
    module = GroupsLM(percentiles=(50,), groups=GROUP_NAMES)
    trainer = make_trainer(tmp_path)
    for seed in (3, 4):
        batches = make_batches(3, seed=seed)
        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        (result,) = trainer.validate(module, loader, verbose=False)
        losses, group = validated_losses(module, batches)
        wanted = exact_quantile(losses[~group], 0.5).item()
        assert result["val_ce_prompt_p50"] == pytest.approx(wanted, rel=1e-6)


def test_a_step_that_forgets_the_group_is_told(tmp_path):
    loader = torch.utils.data.DataLoader(make_batches(2), batch_size=None)
    with pytest.raises(ValueError, match=r"`group`.*prompt, completion"):
        make_trainer(tmp_path).validate(LitLM(groups=GROUP_NAMES), loader, verbose=False)
    with pytest.raises(ValueError, match=r"`group`.*`groups`"):
        make_trainer(tmp_path).validate(GroupsLM(), loader, verbose=False)


@pytest.mark.parametrize("groups", [("a b",), ("finite",), ("a", "a"), "prompt"])
def test_impossible_groups_are_refused_where_they_are_configured(groups):
    with pytest.raises(ValueError, match=re.escape("`groups`")):
        LitLM(groups=groups)

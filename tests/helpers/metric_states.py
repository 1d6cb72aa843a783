"""The state of a metric, whatever metric it is."""

import torch


def fed(metric, *batches):
    """The metric after one update for each batch: a tuple or a dict of arguments, or a single argument."""
    for one in batches:
        if isinstance(one, dict):
            metric.update(**one)
        else:
            metric.update(*(one if isinstance(one, tuple) else (one,)))
    return metric


def state_of(metric):
    """The one tensor of state, in which everything is that was added; of several states all their numbers."""
    first, *others = metric.metric_state.values()
    return torch.cat([each.flatten() for each in (first, *others)]) if others else first


def state_name_of(metric):
    """The name of the first state."""
    return next(iter(metric.metric_state))


def waits(metric):
    """Whether values wait to be added to the state: then it is not there until something reads it."""
    return not set(metric._defaults) & set(vars(metric))

"""The state of a metric, whatever metric it is."""


def fed(metric, *batches):
    """The metric after one update for each batch: a tuple or a dict of arguments, or a single argument."""
    for one in batches:
        if isinstance(one, dict):
            metric.update(**one)
        else:
            metric.update(*(one if isinstance(one, tuple) else (one,)))
    return metric


def state_of(metric):
    """The one tensor of state, in which everything is that was added."""
    (state,) = metric.metric_state.values()
    return state


def state_name_of(metric):
    (name,) = metric.metric_state
    return name


def waits(metric):
    """Whether values wait to be added to the state: then it is not there until something reads it."""
    return not set(metric._defaults) & set(vars(metric))

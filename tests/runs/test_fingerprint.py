"""A name of data that depends on how many tokens there are where, and on no loss."""

import pytest
import torch

from lightning_pce import digest as td
from lightning_pce.runs.fingerprint import fingerprint


def digest_of(*values, weights=None):
    weights = None if weights is None else torch.tensor(weights)
    return td.from_values(torch.tensor(values, dtype=torch.float64), weights)


def counts(*per_slot):
    """Some tokens in some slots, in any bins."""
    found = torch.zeros(128, 97, dtype=torch.float64)
    for slot, number in enumerate(per_slot):
        found[slot, 7 * slot % 96] = number
    return found


def test_it_does_not_depend_on_losses():
    names = {
        fingerprint({"": digest}, {"": documents})
        for digest, documents in [
            (digest_of(1, 2, 3), counts(2, 1)),
            (digest_of(9, 0, torch.nan), counts(2, 1).roll(3, 1)),
            (digest_of(1, torch.inf, -torch.inf), counts(2, 1)),
        ]
    }
    [name] = names
    assert len(name) == 16
    int(name, 16)
    with_sums = counts(2, 1)
    with_sums[:, 96] = 5.0  # the sums of losses
    assert fingerprint({"": digest_of(1, 2, 3)}, {"": with_sums}) in names


def test_the_last_digits_of_sums_in_another_order_do_not_matter():
    one, other = (
        fingerprint({"": digest_of(1, 1, 1, weights=weights)})
        for weights in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    )
    assert one == other


BASE = {"digests": {"": digest_of(1, 2, 3), "web": digest_of(1, 2)}, "documents": {"": counts(2, 1)}}
OTHERS = {
    "one token more": {"digests": {**BASE["digests"], "": digest_of(1, 2, 3, 4)}},
    "weights": {"digests": {**BASE["digests"], "": digest_of(1, 2, 3, weights=[1.0, 1.0, 0.5])}},
    "another group": {"digests": {"": digest_of(1, 2, 3), "code": digest_of(1, 2)}},
    "a token of another group": {"digests": {**BASE["digests"], "web": digest_of(1)}},
    "other documents": {"documents": {"": counts(1, 2)}},
    "no documents": {"documents": {}},
    "shift": {"protocol": {"shift": True}},
    "what the user says": {"protocol": {"data": "packed"}},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_data_or_another_protocol_have_another_name(other):
    assert fingerprint(**BASE) != fingerprint(**{**BASE, **other})


def test_the_order_of_a_protocol_does_not_matter():
    one, other = {"shift": True, "ignore_index": -100}, {"ignore_index": -100, "shift": True}
    assert fingerprint(**BASE, protocol=one) == fingerprint(**BASE, protocol=other)

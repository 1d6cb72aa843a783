"""A name of data that depends on how many tokens there are where, and on no loss."""

import pytest
import torch

from lightning_pce import digest as td
from lightning_pce.runs.fingerprint import fingerprint


def digest_of(*values, weights=None):
    weights = None if weights is None else torch.tensor(weights)
    return td.from_values(torch.tensor(values, dtype=torch.float64), weights)


def test_it_does_not_depend_on_losses():
    names = {
        fingerprint({"": digest})
        for digest in (digest_of(1, 2, 3), digest_of(9, 0, torch.nan), digest_of(1, torch.inf, -torch.inf))
    }
    [name] = names
    assert len(name) == 16
    int(name, 16)


def test_the_last_digits_of_sums_in_another_order_do_not_matter():
    one, other = (
        fingerprint({"": digest_of(1, 1, 1, weights=weights)})
        for weights in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    )
    assert one == other


BASE = {"digests": {"": digest_of(1, 2, 3), "web": digest_of(1, 2)}}
OTHERS = {
    "one token more": {"digests": {**BASE["digests"], "": digest_of(1, 2, 3, 4)}},
    "weights": {"digests": {**BASE["digests"], "": digest_of(1, 2, 3, weights=[1.0, 1.0, 0.5])}},
    "another group": {"digests": {"": digest_of(1, 2, 3), "code": digest_of(1, 2)}},
    "a token of another group": {"digests": {**BASE["digests"], "web": digest_of(1)}},
    "shift": {"protocol": {"shift": True}},
    "what the user says": {"protocol": {"data": "packed"}},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_data_or_another_protocol_have_another_name(other):
    assert fingerprint(**BASE) != fingerprint(**{**BASE, **other})


def test_the_order_of_a_protocol_does_not_matter():
    one, other = {"shift": True, "ignore_index": -100}, {"ignore_index": -100, "shift": True}
    assert fingerprint(**BASE, protocol=one) == fingerprint(**BASE, protocol=other)

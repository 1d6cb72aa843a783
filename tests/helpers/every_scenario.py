"""All scenarios of two ranks under Lightning, in one run: to import Lightning takes 5 seconds."""

from tests.helpers import lightning_scenarios, loader_scenarios
from tests.helpers.ranks import note_all

if __name__ == "__main__":
    assert not lightning_scenarios.SCENARIOS.keys() & loader_scenarios.SCENARIOS.keys()
    note_all(lightning_scenarios.SCENARIOS | loader_scenarios.SCENARIOS)

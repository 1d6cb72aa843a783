"""All scenarios of two ranks under Lightning, in one run: to import Lightning takes 5 seconds."""

from tests.helpers import history_scenarios, lightning_scenarios, loader_scenarios
from tests.helpers.ranks import note_all

if __name__ == "__main__":
    parts = [module.SCENARIOS for module in (lightning_scenarios, loader_scenarios, history_scenarios)]
    scenarios = {name: scenario for part in parts for name, scenario in part.items()}
    assert len(scenarios) == sum(map(len, parts))
    note_all(scenarios)

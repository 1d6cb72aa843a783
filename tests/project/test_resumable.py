"""Units of work in processes: what is done is kept, and a process that is killed is an error."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.resumable import Unit, read, results

ROOT = Path(__file__).parents[2]


def units_in(folder, *numbers):
    return [Unit(folder / f"{n}.json", {"name": f"unit {n}", "number": n}) for n in numbers]


def squared(unit):
    with (unit.path.parent / "log").open("a") as log:
        log.write(f"{unit.settings['number']}\n")
    return {"square": unit.settings["number"] ** 2}


def killed(unit):
    if unit.settings["number"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return squared(unit)


def failed(unit):
    raise ValueError(f"no square of {unit.settings['number']}")


def test_what_is_done_is_kept(tmp_path):
    first = results(units_in(tmp_path, 1, 2), squared, 2)
    assert [each["square"] for each in first] == [1, 4]
    more = results(units_in(tmp_path, 1, 2, 3), squared, 2)
    assert [each["square"] for each in more] == [1, 4, 9]
    assert sorted((tmp_path / "log").read_text().split()) == ["1", "2", "3"]


def test_another_recipe_is_done_again_and_other_settings_are_not_overwritten(tmp_path):
    path = tmp_path / "1.json"

    def unit(**settings):
        return Unit(path, {"name": "one", **settings})

    results([unit(number=3, recipe=1)], squared, 1)
    again = unit(number=3, recipe=2)
    assert read(again) is None
    assert results([again], squared, 1)[0]["settings"]["recipe"] == 2
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="number is 3 there and 4 here"):
        results([unit(number=4, recipe=2)], squared, 1)
    with pytest.raises(SystemExit, match="model is None there and 'large' here"):
        results([unit(number=3, recipe=2, model="large")], squared, 1)
    assert path.read_bytes() == before


def test_a_process_that_is_killed_is_an_error_and_not_a_wait(tmp_path):
    with pytest.raises(SystemExit, match="killed, perhaps for lack of memory"):
        results(units_in(tmp_path, 1, 2, 3), killed, 1)
    assert json.loads((tmp_path / "1.json").read_text())["square"] == 1
    assert [each["square"] for each in results(units_in(tmp_path, 1, 2, 3), squared, 1)] == [1, 4, 9]


def test_an_error_of_a_unit_is_raised(tmp_path):
    with pytest.raises(ValueError, match="no square of 5"):
        results(units_in(tmp_path, 5), failed, 1)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    program = (
        "import time\n"
        "from pathlib import Path\n"
        "from examples.resumable import Unit, results\n"
        "def work(unit):\n"
        "    import os\n"
        "    (unit.path.parent / 'pid').write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        f"    results([Unit(Path({str(tmp_path)!r}) / 'unit.json', {{'name': 'one'}})], work, 1)\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment)
    end = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    worker = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait(timeout=20)
    while time.monotonic() < end:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{worker}/stat").exists() and " Z " in Path(f"/proc/{worker}/stat").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("The worker lives on.")

"""Units of work in processes: what is done is kept, and a process that is killed is an error."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.resumable import Unit, check_made_by, read, results, whole, write_json

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


def finished(folder, number, **made_by):
    [unit] = units_in(folder, number)
    write_json(unit.path, {"settings": unit.settings, **made_by})


def test_results_of_other_versions_are_refused_before_anything_is_made(tmp_path):
    units = units_in(tmp_path, 1, 2, 3)
    here = {"versions": {"torch": "2.13", "lightning": "2.6"}, "precision": "bf16"}
    check_made_by(units, **here)
    finished(tmp_path, 1, **here)
    check_made_by(units, **here)
    with pytest.raises(SystemExit, match=r"1.json was .*: precision is 'bf16' there and '32' here\. Such"):
        check_made_by(units, **here | {"precision": "32"})
    newer = here | {"versions": {"torch": "2.14", "lightning": "2.6"}}
    with pytest.raises(SystemExit, match=r": versions.torch is '2.13' there and '2.14' here\. .*--out"):
        check_made_by(units, **newer)
    with pytest.raises(SystemExit, match=r"versions\.numpy is None there and '2' here"):
        check_made_by(units, versions=here["versions"] | {"numpy": "2"})


def test_whole_studies_of_other_versions_are_read_but_not_if_they_are_mixed(tmp_path):
    old, new = {"versions": {"torch": "1"}}, {"versions": {"torch": "2"}}
    for number in (1, 2):
        finished(tmp_path, number, **old)
    check_made_by(units_in(tmp_path, 1, 2), **new)
    finished(tmp_path, 3, **new)
    with pytest.raises(SystemExit, match=r"3\.json was .* versions\.torch is '2' there and '1' in 1\.json"):
        check_made_by(units_in(tmp_path, 1, 2, 3), **new)


def half(path):
    with whole(path) as part:
        part.write_text("ne")
        raise ValueError("half way")


def test_what_fails_half_way_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "one" / "numbers.txt"
    with whole(path) as part:
        part.write_text("old")
    with pytest.raises(ValueError, match="half way"):
        half(path)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def sleeping(tmp_path):
    """Another process that does a unit in ``tmp_path`` for a minute, and the number of its worker."""
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
    yield process, int((tmp_path / "pid").read_text())
    process.kill()
    process.wait(timeout=20)


def test_two_processes_do_not_work_in_one_folder_and_the_lock_of_a_killed_one_is_gone(tmp_path, sleeping):
    process, _ = sleeping
    finished(tmp_path, 1)
    assert len(results(units_in(tmp_path, 1), squared, 1)) == 1  # to read what is there needs no lock
    with pytest.raises(SystemExit, match=f"Another process does units in {re.escape(str(tmp_path))}"):
        results(units_in(tmp_path, 1, 2), squared, 1)
    assert not (tmp_path / "2.json").exists()
    process.kill()
    process.wait(timeout=20)
    assert results(units_in(tmp_path, 1, 2), squared, 1)[1]["square"] == 4
    assert results(units_in(tmp_path, 3), squared, 1)[0]["square"] == 9  # and that of one that is done


def test_processes_end_with_the_one_that_started_them(sleeping):
    process, worker = sleeping
    end = time.monotonic() + 60
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

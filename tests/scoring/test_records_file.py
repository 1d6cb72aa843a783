"""A file of records is written anew: what it must keep, and what it must refuse."""

import os
import resource
import stat

import pytest

from lightning_pce._errors import UserError
from lightning_pce.runs.history import History, write_validation
from lightning_pce.scoring import records_file
from lightning_pce.scoring.records_file import check_records, replace_lines


def line(run, step, name="val"):
    return (
        f'{{"kind":"validation","schema":1,"run":"{run}","function":"score","name":"{name}","step":{step},'
        '"epoch":null,"batch":null,"checkpoint":null,"fingerprint":null,"values":{"ce_p50":1.5},"scalars":{},'
        '"stale":{},"metadata":{}}\n'
    ).encode()


TORN = line("c", 3)[:60]


def test_equal_run_and_name_is_replaced_where_it_stands_and_the_rest_stays_byte_for_byte(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    replace_lines(path, [line("a", 1), line("b", 2)])
    with path.open("ab") as file:
        file.write(b"\n" + TORN)  # a writer was killed
    replace_lines(path, [line("d", 4), line("a", 10), line("a", 5, name="books")])
    expected = [line("a", 10), line("b", 2), b"\n", TORN + b"\n", line("d", 4), line("a", 5, name="books")]
    assert path.read_bytes() == b"".join(expected)
    assert os.listdir(path.parent) == ["records.jsonl"]
    assert [record.step for record in History.load(path)] == [10, 2, 4, 5]


def test_lines_of_training_stay(tmp_path):
    path = tmp_path / "history.jsonl"
    write_validation(path, run="f", name="val", step=1)
    before = path.read_bytes()
    replace_lines(path, [line("a", 1)])
    assert path.read_bytes() == before + line("a", 1)


def test_a_line_that_another_process_appends_meanwhile_is_kept(tmp_path, monkeypatch):
    path, written = tmp_path / "records.jsonl", []
    replace_lines(path, [line("a", 1)])
    write = records_file._write

    def write_beside_another(*arguments):
        write(*arguments)
        if not written:
            written.append(True)
            with path.open("ab") as file:
                file.write(line("other", 7))

    monkeypatch.setattr(records_file, "_write", write_beside_another)
    replace_lines(path, [line("b", 2)])
    assert path.read_bytes() == line("a", 1) + line("other", 7) + line("b", 2)


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "records.jsonl", tmp_path / "link.jsonl"
    replace_lines(target, [line("a", 1)])
    os.chmod(target, 0o640)
    link.symlink_to(target)
    replace_lines(link, [line("b", 2)])
    assert link.is_symlink()
    assert target.read_bytes() == line("a", 1) + line("b", 2)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a text\nof two lines\n", "no history"),
        (line("a", 1).replace(b'"schema":1', b'"schema":99'), "upgrade"),
    ],
)
def test_a_file_that_is_no_history_or_of_a_later_version_is_refused_and_kept(tmp_path, content, words):
    path = tmp_path / "records.jsonl"
    path.write_bytes(content)
    for refuses in (lambda: check_records(path), lambda: replace_lines(path, [line("b", 2)])):
        with pytest.raises(UserError, match=words) as caught:
            refuses()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["records.jsonl"]


def test_a_folder_and_a_path_below_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    for path, words in ((tmp_path, "is a folder"), (tmp_path / "file" / "records.jsonl", "is a file and no")):
        for refuses in (lambda path=path: check_records(path), lambda path=path: replace_lines(path, [])):
            with pytest.raises(UserError, match=words):
                refuses()


def test_a_device_is_refused():
    with pytest.raises(UserError, match="is a device"):
        replace_lines(os.devnull, [line("a", 1)])


def test_where_no_more_can_be_written_the_old_file_stays(tmp_path):
    path = tmp_path / "records.jsonl"
    replace_lines(path, [line("a", 1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line("a", 1)) + 10, hard))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            replace_lines(path, [line("b", 2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == line("a", 1)
    assert os.listdir(tmp_path) == ["records.jsonl"]

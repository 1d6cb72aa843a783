"""Files and folders as documents."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pce._errors import UserError
from lightning_pce.scoring.data import read_all, read_data


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(data):
    return ["".join(part.text for part in document.parts) for document in data.documents]


def ids(data):
    return [document.id for document in data.documents]


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("one", ["one"]),
        ("one\n", ["one"]),
        ("\n\n one\ntwo \n\n\n\nthree\n\n", [" one\ntwo ", "three"]),
        ("one\r\ntwo\r\n\r\nthree\r\n", ["one\r\ntwo", "three"]),
        ("one\n \t\n\u3000\ntwo", ["one", "two"]),
        ("one\u2028\u2028two\x0c\nthree", ["one\u2028\u2028two\x0c\nthree"]),
        (b"\xef\xbb\xbfone", ["one"]),
        ("日本\n\n👩‍👩‍👧\n", ["日本", "👩‍👩‍👧"]),
    ],
)
def test_a_block_between_blank_lines_is_a_document_as_it_stands(tmp_path, content, documents):
    data = read_data(write(tmp_path / "a.txt", content))
    assert texts(data) == documents
    assert ids(data) == [str(i) for i in range(len(documents))]
    assert (data.groups, data.masking) == ((), "all tokens")


def test_a_file_of_a_folder_is_a_document(tmp_path):
    folder = tmp_path / "my books"
    write(folder / "b.txt", "one\n\ntwo\n")
    write(folder / "a" / "c.md", "three")
    write(folder / ".git" / "d.txt", "hidden")
    write(folder / ".hidden", b"\0")
    data = read_data(folder)
    assert (data.name, ids(data)) == ("my_books", ["a/c.md", "b.txt"])
    assert texts(data) == ["three", "one\n\ntwo\n"]


def test_rows_in_the_files_of_a_folder_are_one_dataset(tmp_path):
    write(tmp_path / "data" / "train-2.jsonl", '{"text": "c"}')
    write(tmp_path / "data" / "train-1.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    data = read_data(tmp_path / "data")
    assert (texts(data), ids(data)) == (["a", "b", "c"], ["0", "1", "2"])


def test_llama_cpp_reads_a_file_as_one_text_less_a_newline_at_its_end(tmp_path):
    path = write(tmp_path / "a.txt", "one\r\n\r\n\n two\n\n")
    whole = read_data(path, protocol="llama.cpp")
    assert texts(whole) == ["one\r\n\r\n\n two\n"]
    assert whole.content != read_data(path).content
    closer = write(tmp_path / "b.txt", "one\r\n\n two\n")
    assert read_data(closer).content == read_data(path).content
    assert read_data(closer, protocol="llama.cpp").content != whole.content
    for other in (write(tmp_path / "a.jsonl", '{"text": "a"}'), tmp_path):
        with pytest.raises(UserError, match="reads one text file"):
            read_data(other, protocol="llama.cpp")


def test_the_same_documents_have_the_same_content_in_every_format(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = ["one\ntwo", "日本"]
    rows = [{"text": text} for text in documents]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    paths = [
        write(tmp_path / "a.txt", "\n\n".join(documents)),
        write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))),
        write(tmp_path / "b.NDJSON", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
        write(tmp_path / "a.json", json.dumps(rows, indent=1)),
        tmp_path / "a.parquet",
    ]
    found = {read_data(path).content for path in paths}
    assert len(found) == 1
    assert len(next(iter(found))) == 16
    others = [
        rows[::-1],
        rows[:1],
        [{**row, "id": i + 1} for i, row in enumerate(rows)],
        [{**row, "document": "a"} for row in rows],
        [{"prompt": "", "completion": text} for text in documents],
    ]
    for other in others:
        found.add(read_data(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, other)))).content)
    assert len(found) == 1 + len(others)


def test_several_files_have_names_that_differ_and_do_not_depend_on_their_order(tmp_path):
    paths = [
        write(tmp_path / "x" / "wiki test.txt", "a"),
        write(tmp_path / "code.txt", "a"),
        write(tmp_path / "code.jsonl", '{"text": "a"}'),
        write(tmp_path / "y" / "valid.txt", "a"),
        write(tmp_path / "z" / "valid.txt", "a"),
        write(tmp_path / "数据.txt", "a"),
    ]
    names = [data.name for data in read_all(paths)]
    assert names == ["wiki_test", "code_txt", "code_jsonl", "y_valid", "z_valid", "data"]
    assert [data.name for data in read_all(paths[::-1])] == names[::-1]
    alike = [write(tmp_path / f"a{c}b.txt", "a") for c in "-+"]
    assert len({data.name for data in read_all(alike)}) == 2
    with pytest.raises(UserError, match="given twice"):
        read_all([paths[0], str(tmp_path / "y" / ".." / "x" / "wiki test.txt")])
    with pytest.raises(UserError, match="No data"):
        read_all([])


def test_the_path_is_kept_as_the_user_named_it(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "a")
    monkeypatch.chdir(tmp_path)
    assert read_data("./a.txt").path == "./a.txt"
    assert read_data(".").name == read_data(tmp_path).name


REFUSED = {
    "missing": (None, "no such file"),
    "empty": (b"", "holds no text: it is empty"),
    "whitespace": (b" \n\t\n", "only whitespace"),
    "NUL": (b"one\ntwo\0", r"NUL byte at byte 7 \(line 2\)"),
    "UTF-16": ("one".encode("utf-16"), "UTF-16"),
    "Latin-1": ("one\n\u00e9t\u00e9".encode("latin-1"), r"not UTF-8 at byte 4 \(line 2\), which is 0xe9"),
    "after a byte order mark": (b"\xef\xbb\xbfa\xff", r"at byte 4 \(line 1\), which is 0xff"),
    "a surrogate": (b"a\xed\xa0\x80", "at byte 1"),
}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED)
def test_text_that_is_refused(tmp_path, content, said):
    path = tmp_path / "a.txt"
    if content is not None:
        write(path, content)
    with pytest.raises(UserError, match=said) as caught:
        read_data(path)
    assert "\n" not in str(caught.value)
    assert "a.txt" in str(caught.value)


def test_folders_that_are_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    write(empty / ".hidden", "a")
    with pytest.raises(UserError, match="holds no files"):
        read_data(empty)
    write(empty / "a.txt", "")
    write(empty / "b.txt", "b")
    write(empty / "c.txt", " \n")
    with pytest.raises(UserError, match=r"2 of 3 documents hold no text .* 'a.txt'"):
        read_data(empty)
    write(empty / "d.jsonl", '{"text": "a"}')
    with pytest.raises(UserError, match=r"both rows \(d.jsonl\) and text \(a.txt\)"):
        read_data(empty)
    write(tmp_path / "other" / "a.bin", b"a\0")
    with pytest.raises(UserError, match="NUL"):
        read_data(tmp_path / "other")


def test_columns_need_rows(tmp_path):
    path = write(tmp_path / "a.txt", "a")
    for data in (path, tmp_path):
        with pytest.raises(UserError, match="no column 'source'"):
            read_data(data, group="source")
    with pytest.raises(UserError, match=r"not from \.csv"):
        read_data(write(tmp_path / "a.csv", "text\na"))


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    with pytest.raises(
        UserError, match=r"neither a file nor a folder|no such file"
    ):  # Windows has no /dev/null
        read_data("/dev/null")
    write(tmp_path / "a.txt", "a")
    try:
        (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
    except OSError:  # Windows may not allow it; then there is nothing to refuse
        assert len(read_data(tmp_path).documents) == 1
    else:
        with pytest.raises(UserError, match=r"b\.txt is not a file"):
            read_data(tmp_path)


def test_reading_data_imports_neither_torch_nor_transformers(tmp_path):
    write(tmp_path / "a.txt", "a")
    write(tmp_path / "a.jsonl", '{"text": "a"}')
    code = (
        "import sys; from lightning_pce.scoring import tokenizing, windows\n"
        "from lightning_pce.scoring.data import read_all\n"
        f"read_all({[str(tmp_path / name) for name in ('a.txt', 'a.jsonl')]!r})\n"
        "print({'torch', 'transformers', 'pyarrow', 'lightning'} & set(sys.modules) or 'none')"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=root)
    assert done.stdout == "none\n"


def test_a_home_that_is_not_there_is_no_file():
    with pytest.raises(UserError, match="no such file or folder"):
        read_data("~no-such-user/text.txt")

"""Models are found by name, in the order of their steps, and what is wrong with their files is said."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_pce._errors import UserError
from lightning_pce.scoring.models import content_key, find_models, load_model, step_of
from tests.helpers.tiny_checkpoints import change_config, lightning_checkpoint, tiny_checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that may be broken."""
    return copy_of(whole, tmp_path / "model")


def copy_of(whole, folder):
    folder.mkdir(parents=True)
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def refused(*names, base=None):
    with pytest.raises(UserError) as error:
        find_models(names, base=base)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_checkpoints_of_a_run_come_by_step(whole, tmp_path):
    steps = [5, 1000, 200]
    for step in steps:
        copy_of(whole, tmp_path / f"checkpoint-{step}")
    by_pattern = find_models([str(tmp_path / "checkpoint-*")])
    by_shell = find_models(sorted(tmp_path.glob("checkpoint-*")))
    for found in (by_pattern, by_shell):
        assert [(source.kind, source.step) for source in found] == [
            ("folder", step) for step in sorted(steps)
        ]
        assert [source.name for source in found] == [
            str(tmp_path / f"checkpoint-{step}") for step in (5, 200, 1000)
        ]


def test_names_without_steps_stay_in_the_order_given(whole, tmp_path):
    names = [copy_of(whole, tmp_path / name) for name in ("model-13b", "model-7b", "a")]
    assert [source.path for source in find_models([*names, names[0]])] == names


@pytest.mark.parametrize(("name", "step"), [
    ("checkpoint-70", 70),
    ("epoch=3-step=4000.ckpt", 4000),
    ("epoch=3-step=4000-v1.ckpt", 4000),
    ("global_step_12", 12),
    ("model-step7", 7),
    ("footstep3", None),
    ("last.ckpt", None),
    ("run-3", None),
])  # fmt: skip
def test_steps_in_names(whole, tmp_path, name, step):
    if name.endswith(".ckpt"):
        torch.save({"state_dict": {}}, tmp_path / name)
        (source,) = find_models([tmp_path / name], base=whole)
        assert source.kind == "ckpt"
    else:
        (source,) = find_models([copy_of(whole, tmp_path / name)])
        assert step_of(source) == step
    assert source.step == step


def test_a_step_is_known_in_the_folder_itself(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(copy_of(whole, tmp_path / "checkpoint-30"))
    assert [(source.name, source.step) for source in find_models(["."])] == [(".", 30)]


def test_neither_finding_nor_hashing_imports_torch(whole, tmp_path):
    code = (
        "import sys; from lightning_pce.scoring.models import *\n"
        f"[source] = find_models([{str(whole)!r}]); print(content_key(source), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [content_key(find_models([whole])[0]), "False"]


@pytest.mark.parametrize(("size", "match"), [
    (-1, "torn, it has .* bytes and its header says"),
    (100, "its header is longer than its 100 bytes"),
    (3, "its header is longer than its 3 bytes"),
    (0, "its header is longer than its 0 bytes"),
])  # fmt: skip
def test_torn_weights(folder, size, match):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=match):
        find_models([folder])


@pytest.mark.parametrize(("content", "match"), [
    ("{", "config.json: not JSON"),
    ("[1]", "expected a JSON object but it holds a list"),
    ("{}", "config.json has no `architectures`"),
    ('{"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": true}', "T5ForConditional"),
    ('{"architectures": ["BartForCausalLM"], "is_encoder_decoder": true}', "BartForCausalLM, which is not"),
    ('{"architectures": ["CLIPModel"], "text_config": {}}', "CLIPModel, which is not a causal"),
    ('{"architectures": ["BertForMaskedLM"]}', "BertForMaskedLM, which is not a causal"),
    ("\udcff", "config.json: not JSON"),
])  # fmt: skip
def test_configurations_that_are_refused(folder, content, match):
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert match in refused(folder)


def test_missing_parts(folder):
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors (nor pytorch_model.bin) beside config.json" in refused(folder)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    assert "2 of 2 files of weights are missing: model-1.safetensors, model-2.saf" in refused(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors.index.json").unlink()
    assert "no model in this folder" in refused(folder)


def test_a_folder_without_tokenizer_takes_the_bases(folder, whole):
    alone = content_key(find_models([folder])[0])
    (folder / "tokenizer.json").unlink()
    assert "name the model that it was trained from by --base" in refused(folder)
    (source,) = find_models([folder], base=whole)
    assert source.base is not None
    assert content_key(source) != alone
    assert "--base" in refused(whole, base=folder)
    assert "is not needed" in refused(whole, base=whole)


def test_names_of_nothing(tmp_path, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused() == "no model was named"
    assert refused("x/*") == "x/*: no file or folder matches this pattern"
    for name in ("./nothing", "a/b/c", "x.gguf", "a.ckpt", str(tmp_path / "no"), "a b"):
        assert refused(name) == f"{name}: no such file or folder"
    assert "HF_HUB_OFFLINE is set" in refused("owner/model")
    assert "name too long" in refused("a" * 5000)
    assert "a part of a model; name its folder" in refused(whole / "model.safetensors")
    Path("notes.txt").write_text("x", encoding="utf-8")
    assert "not a model; name a folder" in refused("notes.txt")
    copy_of(whole, tmp_path / "run" / "checkpoint-1")
    assert "a folder of checkpoints; name them by " + str(Path("run/checkpoint-*")) in refused("run")


@pytest.mark.parametrize(("content", "match"), [
    (b"", "no GGUF file, it has 0 bytes"),
    (b"A text that somebody has named so.", "it begins with b'A te'"),
    (b"GGUF" + bytes([1, 0, 0, 0]) + bytes(16), "GGUF version 1"),
    (b"GGUF" + bytes([3, 0, 0, 0]) + bytes(16), "without tensors"),
    (b"GGUF" + bytes([3, 0, 0, 0]) + b"\x01" + bytes(7) + b"\x01" + bytes(7), "a torn GGUF file"),
])  # fmt: skip
def test_files_that_are_no_gguf(tmp_path, content, match):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    assert match in refused(file)
    assert match in refused(tmp_path)  # a folder with one
    (tmp_path / "other.gguf").write_bytes(content)
    assert "holds 2 .gguf files" in refused(tmp_path)


def test_checkpoints_that_are_not_whole(whole, tmp_path):
    path = lightning_checkpoint(tmp_path / "a.ckpt", whole)
    assert "name the model that it was trained from by --base MODEL" in refused(path)
    assert "that is itself a .ckpt" in refused(path, base=path)
    path.write_bytes(path.read_bytes()[:-50])
    assert "torn, its end is missing" in refused(path, base=whole)
    path.write_bytes(b"text")
    assert "not a file of torch.save" in refused(path, base=whole)
    torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    assert "before torch 1.6" in refused(path, base=whole)


@pytest.fixture
def hub(whole, tmp_path, monkeypatch):
    """A cache of the hub as it is on disk, with the model ``owner/tiny``."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--owner--tiny" / "blobs"
    snapshot = blobs.parent / "snapshots" / ("a" * 40)
    for folder in (blobs, snapshot, blobs.parent / "refs"):
        folder.mkdir(parents=True)
    (blobs.parent / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    for path in whole.iterdir():
        content = path.read_bytes()
        large = path.suffix == ".safetensors"
        blob = blobs / (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(blob)
    return snapshot


def test_a_name_of_the_hub_is_what_was_downloaded(hub, whole):
    (source,) = find_models(["owner/tiny"])
    assert (source.kind, source.path) == ("hub", hub)
    assert content_key(source) == content_key(find_models([whole])[0])
    assert load_model(source).vocabulary == 262
    assert find_models([f"owner/tiny@{'a' * 40}"])[0].path == hub
    (hub / "model.safetensors").unlink()
    assert "no model.safetensors" in refused("owner/tiny")
    assert "HF_HUB_OFFLINE is set" in refused("owner/tiny@step5")
    change_config(hub, architectures=["BertModel"])
    assert "BertModel" in refused("owner/tiny")

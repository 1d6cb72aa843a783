"""A model's key changes with every file that changes its numbers, whatever its times say."""

import json
import os
import re
import time

import pytest

from lightning_pce.scoring import _content
from lightning_pce.scoring.models import content_key, find_models
from tests.helpers.tiny_checkpoints import change_config, lightning_checkpoint, tiny_checkpoint

OLD = 1_600_000_000


@pytest.fixture
def folder(tmp_path):
    return tiny_checkpoint(tmp_path / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where hashes are kept, of files that count as old enough."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_content, "_TOO_NEW_NS", 0)
    return tmp_path / "cache" / "lightning-pce" / "sha256.json"


def key_of(path, base=None):
    (source,) = find_models([path], base=base)
    return content_key(source)


def changed(path):
    """One bit of a file, its size and the time of its last writing kept."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    time.sleep(0.02)  # the kernel's clock of files ticks every 4 to 10 ms
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_key_is_that_of_the_content(folder, tmp_path):
    key = key_of(folder)
    assert re.fullmatch("[0-9a-f]{16}", key)
    assert key_of(tiny_checkpoint(tmp_path / "again")) == key
    assert key_of(tiny_checkpoint(tmp_path / "other", seed=1)) != key
    (folder / "generation_config.json").write_text("{}", encoding="utf-8")
    (folder / "README.md").write_text("x", encoding="utf-8")
    assert key_of(folder) == key


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_a_changed_file_changes_the_key(folder, cache, name, kept):
    key = key_of(folder)
    assert cache.exists()
    if not kept:
        cache.unlink()
    if name == "model.safetensors":
        changed(folder / name)
    else:
        (folder / name).write_text((folder / name).read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert key_of(folder) != key


def test_a_kept_hash_is_taken(folder, cache):
    key = key_of(folder)
    entries = json.loads(cache.read_text(encoding="utf-8"))
    assert {os.path.basename(path) for path in entries} >= {"model.safetensors", "config.json"}
    assert key_of(folder) == key
    (path,) = (each for each in entries if each.endswith("model.safetensors"))
    entries[path][-1] = "0" * 64
    cache.write_text(json.dumps(entries), encoding="utf-8")
    assert key_of(folder) != key


def test_a_file_that_is_being_written_is_not_kept(folder, cache, monkeypatch):
    monkeypatch.setattr(_content, "_TOO_NEW_NS", 10**12)
    key_of(folder)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 3}', '{"a": [1, 2, 3, 4]}', "\0"])
def test_a_broken_cache_is_as_none(folder, cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content, encoding="utf-8")
    key = key_of(folder)
    cache.unlink()
    assert key_of(folder) == key
    assert len(json.loads(cache.read_text(encoding="utf-8"))) >= 4


def test_a_cache_that_cannot_be_written_is_left_out(folder, cache):
    cache.parent.parent.write_text("a file where the folder should be", encoding="utf-8")
    assert key_of(folder) == key_of(folder)


def test_a_base_belongs_to_the_key(folder, tmp_path):
    path = lightning_checkpoint(tmp_path / "a.ckpt", folder)
    key = key_of(path, folder)
    assert key_of(path.rename(tmp_path / "b.ckpt"), folder) == key
    change_config(folder, rope_theta=5.0)
    assert key_of(tmp_path / "b.ckpt", folder) != key

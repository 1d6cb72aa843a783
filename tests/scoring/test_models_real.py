"""A real GGUF loads as transformers loads it; and a process that loads a model has nothing to say."""

import subprocess
import sys

import pytest
import torch

from lightning_pce._errors import UserError
from lightning_pce.scoring.models import check_vocabulary, find_models, load_model, load_tokenizer
from tests.helpers.real_model import folder_of_smollm2, smollm2
from tests.helpers.tiny_checkpoints import tiny_checkpoint

pytestmark = pytest.mark.slow


def test_a_gguf_is_dequantised_to_float32(capfd):
    (by_folder,) = find_models([folder_of_smollm2()])
    (by_file,) = find_models([next(folder_of_smollm2().glob("*.gguf"))])
    assert (by_folder.kind, by_folder.path) == ("gguf", by_file.path)
    found, tokenizer = load_model(by_file), load_tokenizer(by_file)
    assert capfd.readouterr() == ("", "")
    model, theirs = smollm2()
    assert (found.dtype, found.quantisation, found.context) == ("float32", "Q4_1", 8192)
    check_vocabulary(tokenizer, found, "SmolLM2")
    text = "Emoji 🙂 and 漢字, 1234 in one line."
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids.tolist() == [theirs(text)["input_ids"]]
    with torch.no_grad():
        assert torch.equal(found.model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(("size", "match"), [(-1, "a torn GGUF file, it has"), (200_000, "cannot be read")])
def test_a_torn_gguf(tmp_path, size, match):
    whole = next(folder_of_smollm2().glob("*.gguf"))
    (tmp_path / "torn.gguf").write_bytes(whole.read_bytes()[:size])
    with pytest.raises(UserError, match=match):
        find_models([tmp_path / "torn.gguf"])


def test_a_process_that_loads_writes_nothing(tmp_path):
    code = (
        "from lightning_pce.scoring.models import *\n"
        f"[source] = find_models([{str(tiny_checkpoint(tmp_path))!r}])\n"
        "load_tokenizer(source); load_model(source)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""What options mean, which process this is, and how far the work is."""

import io
from types import SimpleNamespace

import pytest

from lightning_pce._errors import UserError
from lightning_pce.scoring.processes import Place, place_here
from lightning_pce.scoring.progress import Progress
from lightning_pce.scoring.settings import bytes_of, check_settings, context_of

OPTIONS = {
    "protocol": "windows",
    "context": None,
    "stride": None,
    "dtype": "auto",
    "batch_tokens": None,
    "step": None,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"protocol": "packed"}, "--protocol packed: take one of windows, llama.cpp"),
        ({"dtype": "int8"}, "--dtype int8: expected one of auto, float32"),
        ({"context": 1}, "--context 1"),
        ({"stride": 0}, "--stride 0: take 1 to 2048"),
        ({"context": 8, "stride": 9}, "--stride 9: take 1 to 8"),
        ({"protocol": "llama.cpp", "stride": 9}, "leave out --stride"),
        ({"batch_tokens": 0}, "--batch-tokens 0"),
        ({"step": -1}, "--step -1"),
    ],
)
def test_settings_that_are_refused(changed, said):
    check_settings(**OPTIONS)
    with pytest.raises(UserError, match=said):
        check_settings(**OPTIONS | changed)


@pytest.mark.parametrize("memory", ["1 apple", "", "GiB", "1..5GiB", "15MiB", "-1GiB"])
def test_memory_that_is_refused(memory):
    with pytest.raises(UserError, match="--memory"):
        bytes_of(memory)


def test_the_context_is_the_models_or_less():
    plain = SimpleNamespace()
    assert context_of(None, plain, 131072) == 2048
    assert context_of(None, plain, 512) == 512
    assert context_of(None, plain, None) == 2048
    assert context_of(4096, plain, 131072) == 4096
    with pytest.raises(UserError, match="--context 513: the model has positions for 512"):
        context_of(513, plain, 512)
    # Rotary embeddings that follow the longest row: not beyond what the model was trained with.
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    follows = SimpleNamespace(rope_scaling=rope)
    assert context_of(4096, follows, 131072) == 4096
    with pytest.raises(UserError, match="4096"):
        context_of(4097, follows, 131072)


MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


def test_which_process_this_is():
    assert place_here({}) == Place(0, 1, 0)
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **MASTER}
    assert place_here(torchrun) == Place(3, 4, 1)
    slurm = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_LOCALID": "0", **MASTER}
    assert place_here(slurm) == Place(2, 3, 0)
    # A batch script that runs one process though several tasks were asked for.
    assert place_here({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}) == Place(0, 1, 0)
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT not set"):
        place_here({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"})
    with pytest.raises(UserError, match="RANK=None and WORLD_SIZE=2"):
        place_here({"WORLD_SIZE": "2"})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_is_gone_at_the_end(monkeypatch):
    monkeypatch.setattr("lightning_pce.scoring.progress._OFTEN", 0.0)
    terminal = Terminal()
    progress = Progress("model on text", 200, 2, terminal)
    progress.add(50)
    progress.end()
    shown = terminal.getvalue()
    assert " 25%" in shown
    assert "tokens/s" in shown
    assert shown.startswith("\r\x1b[K[########......................]")
    assert shown.endswith("\r\x1b[K")


def test_elsewhere_there_is_a_line_a_minute():
    stream = io.StringIO()
    progress = Progress("model on text", 200, 1, stream)
    progress.add(50)
    progress.end()
    assert stream.getvalue() == ""

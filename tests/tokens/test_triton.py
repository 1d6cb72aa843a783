"""The Triton kernel: its results, in a process of its own, and its code for a GPU that need not be here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_pce.tokens.statistics import token_statistics

pytest.importorskip("triton")


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_its_results():
    where = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    run = python("-m", "pytest", "-p", "no:cacheprovider", "tests/helpers/kernel_in_triton.py", **where)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 50


COMPILE = """
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightning_pce.tokens.kernels.triton import BLOCK, WARPS, sum_rows

dtype, everything, path = sys.argv[1], sys.argv[2] == "everything", sys.argv[3]
signature = {"logits": "*" + dtype, "targets": "*i64", "out": "*fp32", "row_stride": "i32"}
signature |= {"stride": "constexpr", "vocabulary": "i32", "rows": "i32"}
signature |= {"size": "constexpr", "everything": "constexpr"}
names = list(signature)
fixed = {"stride": 1, "size": BLOCK, "everything": everything}
aligned = ["logits", "targets", "out", "row_stride", "vocabulary"]
constants = {(names.index(name),): value for name, value in fixed.items()}
attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
if triton.__version__.startswith("3.0."):  # torch 2.4's
    from triton.compiler.compiler import AttrsDescriptor

    constants = fixed
    attributes = AttrsDescriptor([names.index(name) for name in aligned], [names.index("stride")])
source = ASTSource(sum_rows, signature, constants, attributes)
options = {"num_warps": WARPS, "enable_fp_fusion": True}
Path(path).write_bytes(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"])
print(BLOCK // (32 * WARPS))
"""


def loops(sass):
    """The instructions of each loop of a listing, as lists of mnemonics."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);", sass)
    at = {int(address, 16): index for index, (address, _, _) in enumerate(found)}
    for index, (address, name, operands) in enumerate(found):
        target = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
        if target is not None and int(target[1], 16) < int(address, 16):
            yield [mnemonic for _, mnemonic, _ in found[at[int(target[1], 16)] : index + 1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "what", "most"),
    [("bf16", "everything", 15.0), ("fp32", "everything", 13.5), ("bf16", "ce", 9.0), ("fp32", "ce", 8.0)],
)
def test_its_instructions_per_logit_on_sm_90(dtype, what, most, tmp_path):
    """14.4 for all of them in bfloat16. With 15.6 an H200 would issue them as long as it reads the logits."""
    from triton.backends import nvidia

    cubin = tmp_path / "kernel.cubin"
    run = python("-c", COMPILE, dtype, what, str(cubin), TRITON_INTERPRET="0")
    assert run.returncode == 0, run.stderr[-4000:]
    logits_per_thread = int(run.stdout)
    disassembler = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    sass = subprocess.run([disassembler, "-sass", cubin], check=True, capture_output=True, text=True).stdout
    bodies = list(loops(sass))
    assert len(bodies) == 2  # before the target's block and after it
    load_bytes = logits_per_thread * (2 if dtype == "bf16" else 4)
    for body in bodies:
        assert len(body) / logits_per_thread <= most
        assert sum(name.startswith("LDG") for name in body) == load_bytes / 16
        assert all("128" in name for name in body if name.startswith("LDG"))
    assert "LDL" not in sass  # no register was spilled
    assert "STL" not in sass


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes them")
def test_logits_on_a_cpu_are_refused():
    with pytest.raises(ValueError, match=r"(?s)`logits`.*triton.*cpu"):
        token_statistics(torch.zeros(1, 5), torch.tensor([0]), backend="triton")

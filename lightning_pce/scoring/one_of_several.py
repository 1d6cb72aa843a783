"""``python -m lightning_pce.scoring.one_of_several``, which ``processes.run_on`` starts.

Its arguments come as a line of standard input, which stays open; its answer is all of standard output.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from lightning_pce._errors import UserError
from lightning_pce.scoring.evaluate import evaluate


def main() -> int:
    """Evaluate, and give the exit status."""
    arguments = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # whatever a library prints
        try:
            json.dump(evaluate(**arguments), answer)
        except UserError as error:
            json.dump({"error": str(error)}, answer)
            return 2
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)  # not of the buffered file, whose lock would be held at the end
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())

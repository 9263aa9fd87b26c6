# `make train` and `make test` need nothing but Python 3.11 or later; both create the environment first.
PYTHON ?= python3
PYTHON312 ?= python3.12
VENV := .venv
JAX011 := .venv-jax011
RUN := $(VENV)/bin/python
WORKDIR ?= runs/stdlib

.PHONY: train test test-fast test-jax011 lint format clean

train: $(VENV)/train.stamp
	$(RUN) train.py --config=configs/stdlib.py --workdir=$(WORKDIR)

test: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2

test-fast: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2 -m "not slow"

# The fast tests under JAX 0.11, which needs Python 3.12; on 3.11 the same requirements give JAX 0.10.
test-jax011: $(JAX011)/dev.stamp
	$(JAX011)/bin/python -m pytest -n 2 -m "not slow"

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/train.stamp: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; run: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/train.stamp
	$(VENV)/bin/pip install --quiet --upgrade -r requirements-dev.txt
	touch $@

$(JAX011)/dev.stamp: requirements.txt requirements-dev.txt
	@$(PYTHON312) -c 'import sys; sys.exit(sys.version_info < (3, 12) and "Python 3.12 or later is needed; run: make PYTHON312=/path/to/python3.12 test-jax011")'
	$(PYTHON312) -m venv $(JAX011)
	$(JAX011)/bin/pip install --quiet --upgrade -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) $(JAX011) .pytest_cache .ruff_cache .mypy_cache

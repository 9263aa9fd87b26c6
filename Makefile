# `make train` and `make test` need nothing but Python 3.11 or later; both create the environment first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
WORKDIR ?= runs/stdlib

.PHONY: train test test-fast lint format clean

train: $(VENV)/train.stamp
	$(RUN) train.py --config=configs/stdlib.py --workdir=$(WORKDIR)

test: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2

test-fast: $(VENV)/dev.stamp
	$(RUN) -m pytest -n 2 -m "not slow"

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

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache

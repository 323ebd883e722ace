# make quickstart   environment, install, then long-form QA end to end on a shipped sample (offline, CPU)
# make test         environment, install, the test suite
# make style        formatter and linter
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUN = $(VENV)/bin/python
PIP = $(VENV)/bin/pip --disable-pip-version-check
# several threads beside another busy process are slower than one; the tests run in two processes
export TOKENIZERS_PARALLELISM = false
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test test-fast style clean-quickstart

quickstart: $(VENV)/.installed
	$(RUN) quickstart/run.py

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m "not slow"

style: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean-quickstart:
	rm -rf quickstart/work

$(VENV)/.installed: requirements.txt requirements-quickstart.txt setup.py trl/setup.py
	@echo "installing the packages into $(VENV): 6 GB on disk, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -r requirements.txt
	$(PIP) install --no-deps --require-hashes -r requirements-quickstart.txt
	$(PIP) install --no-deps --no-build-isolation -e . -e ./trl
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(PIP) install -r requirements-dev.txt
	touch $@

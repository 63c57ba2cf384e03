# Everything runs in .venv, which is made on first use from constraints.txt. PYTHON picks another interpreter.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test chaos check lint types imports audit benchmarks screenshots soak clean

demo: $(VENV)/core                    ## watch a simulated pool being routed, learned and protected
	$(BIN)/pointsman demo $(ARGS)

test: $(VENV)/dev                     ## run all tests
	$(BIN)/python -m pytest $(ARGS)

chaos: $(VENV)/dev                    ## every fault that can be made, against the real service: a quarter of an hour
	$(BIN)/python -m pytest tests/chaos $(ARGS)

check: lint types imports test        ## what CI runs

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev
	$(BIN)/mypy

imports: $(VENV)/dev
	$(BIN)/lint-imports

audit: $(VENV)/dev                    ## known vulnerabilities of the versions in constraints.txt; CI runs it, too
	$(BIN)/python .ci/audit.py

screenshots: $(VENV)/dev              ## pictures of the dashboard in screenshots/, by Debian's chromium
	$(BIN)/python -m benchmarks.screenshots $(ARGS)

soak: $(VENV)/dev                     ## a million calls with feedback, for hours: memory, times and files beside them
	$(BIN)/python -m benchmarks.soak --json soak.json --plot soak.png $(ARGS)

# What an installation is made of, the compiled modules too: whoever edits one of these gets it anew.
PARTS := pyproject.toml constraints.txt setup.py $(wildcard bandit/*.pyx bandit/*.pxd)

$(PARTS): ;

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: $(PARTS) | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/dev: $(PARTS) | $(BIN)/python
	$(PIP) -e '.[dev]'
	touch $(VENV)/core $@

clean:
	rm -rf $(VENV) build *.egg-info bandit/*.c bandit/*.so .mypy_cache .ruff_cache .hypothesis

# Everything runs in .venv, which is made on first use from constraints.txt. PYTHON picks another interpreter.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check lint types imports benchmarks screenshots soak clean

demo: $(VENV)/core                    ## watch a simulated pool being routed, learned and protected
	$(BIN)/pointsman demo $(ARGS)

test: $(VENV)/dev                     ## run all tests
	$(BIN)/python -m pytest $(ARGS)

check: lint types imports test        ## what CI runs

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/dev
	$(BIN)/mypy

imports: $(VENV)/dev
	$(BIN)/lint-imports

screenshots: $(VENV)/dev              ## pictures of the dashboard in screenshots/, by Debian's chromium
	$(BIN)/python -m benchmarks.screenshots $(ARGS)

soak: $(VENV)/dev                     ## a million calls with feedback, for hours: memory, times and files beside them
	$(BIN)/python -m benchmarks.soak --json soak.json --plot soak.png $(ARGS)

constraints.txt: ;

$(VENV)/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .hypothesis

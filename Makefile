# The README's commands. `make demo` and `make test` each do all the set-up on a fresh machine.
PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= demo
BIN     = $(VENV)/bin

.PHONY: demo test format clean
.DEFAULT_GOAL := demo

# One environment for both, with exact pins. Made again when the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "voxseek needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed   ## Run the main job on a simulated brain; the gallery lands in $(DEMO)/
	$(BIN)/voxseek demo $(DEMO)

test: $(VENV)/.installed   ## Lint, type-check, and run every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

format: $(VENV)/.installed ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:                     ## Remove the environment and the demo
	rm -rf $(VENV) $(DEMO)

# Every habit of the project is one word here; CI and the pre-commit hooks call the same words.
PYTHON ?= python

.PHONY: format lint types test bench check timm-suite timm-oldest hub-olah

format:           ## rewrite the code in the house style
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:             ## style, docstrings, and the one-way imports of the source tree
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

types:            ## static types of the package
	$(PYTHON) -m mypy

test:             ## the default suite
	$(PYTHON) -m pytest

timm-suite:       ## timm's own test_models.py and test_model_input.py on our models
	$(PYTHON) tests/timm_suite/run.py

timm-oldest:      ## the suite on the oldest timm and torch supported, in an environment of its own
	$(PYTHON) tests/timm_suite/oldest.py

hub-olah:         ## downloads through olah, a server that others wrote, in an environment of its own
	$(PYTHON) tests/hub/olah_server.py

check: lint types test

# What one does with this tree; `make help` lists it.
.PHONY: help environment sample-data demo test lint lock clean
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
REQUIREMENTS := docker/requirements
SCRIPTS = $(wildcard *.sh */*.sh .ci/run)
EXECUTABLES = $(wildcard program/train program/serve)
CACHES := .hypothesis .mypy_cache .pytest_cache .ruff_cache

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment: $(VENV)/installed ## everything needed, into .venv (PYTHON= another interpreter, 3.10 to 3.13)

# The stamp, a copy of what was installed, comes last: an interrupted installation has none and starts afresh.
$(VENV)/installed: $(REQUIREMENTS)/dev.txt
	@if cmp -s $< $@; then touch $@; exit; fi; \
	fail() { echo "$$1" >&2; exit 1; }; \
	command -v "$(PYTHON)" >/dev/null || fail "There is no $(PYTHON); install Python 3.10 to 3.13 or set PYTHON=."; \
	"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		fail "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but TensorFlow needs Python 3.10 to 3.13; set PYTHON=."; \
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		fail "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; \
	echo "Installing $< into $(VENV); this takes some minutes the first time." && \
	"$(PYTHON)" -m venv --clear $(VENV) && \
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $< && \
	cp $< $@

sample-data: environment ## handwritten digits as PNG files, into local_test/test_dir
	$(VENV)/bin/python local_test/digits.py

demo: environment ## all of it: sample data, train, serve, predict, and one table of the answers
	$(VENV)/bin/python local_test/demo.py

test: environment ## the tests (PYTEST_ARGS= what pytest is to be told, such as -k NAME)
	@command -v gcc >/dev/null || { echo "The tests build a stand-in for NVIDIA's library and need gcc: apt-get install gcc libc6-dev" >&2; exit 1; }
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: environment ## ruff, mypy and shellcheck
	$(VENV)/bin/python -m ruff check . $(EXECUTABLES)
	$(VENV)/bin/python -m ruff format --check . $(EXECUTABLES)
	MYPYPATH=local_test $(VENV)/bin/python -m mypy program local_test
	$(VENV)/bin/shellcheck $(SCRIPTS)

lock: environment ## write docker/requirements/*.txt anew from *.in (LOCK_ARGS=--upgrade for newer versions)
	$(LOCK) $(REQUIREMENTS)/cpu.in -o $(REQUIREMENTS)/cpu.txt
	$(LOCK) $(REQUIREMENTS)/dev.in -c $(REQUIREMENTS)/cpu.txt -o $(REQUIREMENTS)/dev.txt
LOCK = $(VENV)/bin/uv pip compile --no-config --universal --python-version 3.10 --generate-hashes \
	--no-annotate --no-header --quiet $(LOCK_ARGS)

clean: ## remove .venv, caches, the trained model, its output and the sample data; your own pictures stay
	rm -rf $(VENV) $(CACHES) local_test/test_dir/model local_test/test_dir/output
	rm -f local_test/test_dir/.digits-* local_test/test_dir/*/[0-9]/digit-*.png local_test/test_dir/*/*/*/[0-9]/digit-*.png
	find local_test/test_dir -type d -empty -delete
	find . -name __pycache__ -type d -exec rm -rf {} +

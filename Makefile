# All commands of this project; `make help` lists them.
.PHONY: help environment sample-data demo test test-all test-environment coverage fuzz fuzz-http test-sdk lint lock clean cpu-image gpu-image serve-image sbom bench faults soak bench-train
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
REQUIREMENTS := docker/requirements
SCRIPTS = $(wildcard *.sh */*.sh */*/*.sh .ci/run)
EXECUTABLES = $(wildcard program/train program/serve)
CACHES := .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment: $(VENV)/installed ## install all requirements into .venv (PYTHON= another interpreter, 3.10 to 3.13)

# The stamp, a copy of the installed requirements, is written last: an interrupted installation starts again.
$(VENV)/installed: $(REQUIREMENTS)/dev.txt
	@if cmp -s $< $@; then touch $@; exit; fi; \
	fail() { echo "$$1" >&2; exit 1; }; \
	command -v "$(PYTHON)" >/dev/null || fail "There is no $(PYTHON); install Python 3.10 to 3.13 or set PYTHON=."; \
	"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
		fail "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but TensorFlow needs Python 3.10 to 3.13; set PYTHON=."; \
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		fail "$(PYTHON) cannot create virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; \
	echo "Installing $< into $(VENV); this takes a few minutes the first time." && \
	"$(PYTHON)" -m venv --clear $(VENV) && \
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $< && \
	cp $< $@

sample-data: environment ## write handwritten digits as PNG files to local_test/test_dir
	$(VENV)/bin/python local_test/digits.py

demo: environment ## run everything: write sample data, train, serve, predict, and print a table of predictions
	$(VENV)/bin/python local_test/demo.py

test: test-environment ## run the quick tests, a few minutes on two cores (PYTEST_ARGS= options of pytest, such as "-k NAME")
	$(PYTEST) $(PARALLEL) -m $(QUICK) $(PYTEST_ARGS)

# The images' tests run one by one: they share a Docker engine. pytest exits with 5 if -k leaves no test.
test-all: test-environment ## run all tests, also the slow ones and, if a Docker engine answers, those of the images
	$(PYTEST) $(PARALLEL) -m "not image and not sdk" $(PYTEST_ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -m image $(PYTEST_ARGS) || [ $$? -eq 5 ]

coverage: test-environment ## run the quick tests and print which lines and branches of program/ they miss
	$(PYTEST) $(PARALLEL) -m $(QUICK) --cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

test-environment: environment
	@command -v gcc >/dev/null || { echo "The tests build a stand-in for NVIDIA's library and need gcc: apt-get install gcc libc6-dev" >&2; exit 1; }

PYTEST = $(VENV)/bin/python -m pytest
QUICK = "not slow and not image and not sdk"
# One worker more than cores, as some tests wait; at most eight, as each loads TensorFlow and starts processes that
# load it again. With worksteal most tests of a module run in one worker, where its fixtures are made once.
PARALLEL = --numprocesses=$(shell expr $$(nproc) + 1) --maxprocesses=8 --dist=worksteal

test-sdk: $(VENV)/sdk2/installed $(VENV)/sdk3/installed ## the real SageMaker SDKs, v2 and v3, as clients of the cpu image, which it makes
	tests/docker/engine.sh
	tests/docker/base_image.sh "$(BASE_IMAGE)"
	tests/sdk/compose.sh
	$(MAKE) --no-print-directory cpu-image IMAGE=tandem TAG=cpu
	REQUIRE_SDK=1 $(VENV)/bin/python -m pytest -m sdk $(PYTEST_ARGS)

fuzz: environment ## test the decoders with 250,000 mutated files; takes a few minutes (FUZZ_ARGS= --seed, --inputs, --jobs, …)
	PYTHONPATH=program:tests $(VENV)/bin/python -m fuzz $(FUZZ_ARGS)

fuzz-http: environment ## test the server with 120,000 hostile requests; takes a few minutes (FUZZ_ARGS= --requests, --seed)
	PYTHONPATH=program:tests $(VENV)/bin/python -m fuzz.http $(FUZZ_ARGS)

lint: environment ## run ruff, mypy, import-linter and shellcheck
	$(VENV)/bin/python -m ruff check . $(EXECUTABLES)
	$(VENV)/bin/python -m ruff format --check . $(EXECUTABLES)
	MYPYPATH=local_test $(VENV)/bin/python -m mypy program local_test bench
	PYTHONPATH=program $(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/shellcheck $(SCRIPTS)

lock: environment ## write docker/requirements/*.txt from *.in (LOCK_ARGS=--upgrade for newer versions)
	$(LOCK) $(REQUIREMENTS)/cpu.in -o $(REQUIREMENTS)/cpu.txt
	$(LOCK) $(REQUIREMENTS)/dev.in -c $(REQUIREMENTS)/cpu.txt -o $(REQUIREMENTS)/dev.txt
	$(LOCK) $(REQUIREMENTS)/pip.in -o $(REQUIREMENTS)/pip.txt
	$(LOCK) $(REQUIREMENTS)/serve.in -c $(REQUIREMENTS)/cpu.txt -o $(REQUIREMENTS)/serve.txt
	$(LOCK) $(REQUIREMENTS)/gpu.in -c $(REQUIREMENTS)/cpu.txt -o $(REQUIREMENTS)/gpu.txt
	$(LOCK) $(REQUIREMENTS)/gpu-kepler.in -o $(REQUIREMENTS)/gpu-kepler.txt
	$(LOCK) $(REQUIREMENTS)/naive.in -c $(REQUIREMENTS)/cpu.txt -o $(REQUIREMENTS)/naive.txt
	$(LOCK) $(REQUIREMENTS)/ecr.in -o $(REQUIREMENTS)/ecr.txt
	$(LOCK) $(REQUIREMENTS)/sbom.in -o $(REQUIREMENTS)/sbom.txt
	$(LOCK) $(REQUIREMENTS)/sdk2.in -o $(REQUIREMENTS)/sdk2.txt
	$(LOCK) $(REQUIREMENTS)/sdk3.in -o $(REQUIREMENTS)/sdk3.txt
LOCK = $(VENV)/bin/uv pip compile --no-config --universal --python-version 3.10 --generate-hashes \
	--no-annotate --no-header --quiet $(LOCK_ARGS)

cpu-image: ## build the image that trains and serves on CPUs (IMAGE= TAG= BASE_IMAGE= ALGORITHM=)
gpu-image: ## build the image for GPUs, which works on CPUs too (CUDA=11: for a K80, and for hosts with driver 470)
serve-image: ## build the small image that only serves, on CPUs, without TensorFlow
# The two environment variables: one platform and no attestations, because SageMaker does not accept an image index.
cpu-image gpu-image serve-image: TARGET = $(@:-image=)
cpu-image gpu-image serve-image:
	$(if $(filter 11 12,$(CUDA)),,$(error CUDA is $(CUDA), expected 12 or 11))
	DOCKER_DEFAULT_PLATFORM=linux/amd64 BUILDX_NO_DEFAULT_ATTESTATIONS=1 $(DOCKER) build \
		--file docker/Dockerfile --target $(TARGET) \
		--tag "$(IMAGE):$(or $(TAG),$(TARGET)$(if $(filter gpu-11,$(TARGET)-$(CUDA)),-cuda11))" \
		--build-arg BASE_IMAGE="$(BASE_IMAGE)" --build-arg ALGORITHM="$(ALGORITHM)" --build-arg CUDA="$(CUDA)" \
		--build-arg VERSION="$(VERSION)" --build-arg REVISION="$(REVISION)" --build-arg SOURCE="$(SOURCE)" .
DOCKER ?= docker
IMAGE ?= tandem
BASE_IMAGE ?= debian:bookworm-slim
ALGORITHM ?= algorithms.image_classifier
CUDA ?= 12
# For the labels; a password in the URL of the git remote is removed.
VERSION ?= $(shell git describe --always --tags --dirty 2>/dev/null)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
SOURCE ?= $(shell git remote get-url origin 2>/dev/null | sed 's|//[^/@]*@|//|')

sbom: $(VENV)/sbom/installed ## write the contents of the built images to sbom/, as CycloneDX (IMAGE= TAG= for one of them)
	@mkdir -p sbom
	@made=; for tag in $(or $(TAG),serve cpu gpu gpu-cuda11); do \
		$(DOCKER) image inspect "$(IMAGE):$$tag" >/dev/null 2>&1 || continue; \
		made=sbom/$$(printf %s "$(IMAGE)_$$tag" | tr -c 'A-Za-z0-9._-' _).cdx.json; \
		PATH="$(CURDIR)/$(VENV)/sbom/bin:$$PATH" docker/sbom.sh "$(IMAGE):$$tag" "$$made" && echo "$$made" || exit; \
	done; \
	[ -n "$$made" ] || { echo "There is no image $(IMAGE):$(or $(TAG),cpu); build it first, for example with make cpu-image." >&2; exit 1; }

# Separate environments, for packages that conflict with the versions in .venv or must not influence them.
$(VENV)/%/installed: $(REQUIREMENTS)/%.txt | environment
	$(VENV)/bin/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

bench: $(VENV)/naive/installed ## measure serving: the limit, the tutorials' stack and ours (BENCH_ARGS=--help)
	PYTHONPATH=program $(VENV)/bin/python -m bench $(BENCH_ARGS)

faults: environment ## harm a server under load in two dozen ways: what is lost, what /ping says (FAULTS_ARGS=--help)
	PYTHONPATH=program $(VENV)/bin/python -m bench.faults $(FAULTS_ARGS)

soak: environment ## ten minutes at the saturation point: memory, and every answer (SECONDS=600)
	PYTHONPATH=program $(VENV)/bin/python -m bench.soak --seconds $(or $(SECONDS),600) $(SOAK_ARGS)

bench-train: environment ## measure training: our input pipeline, tensors in memory and Keras's own (BENCH_ARGS=--help)
	PYTHONPATH=program $(VENV)/bin/python -m bench.training $(BENCH_ARGS)

clean: ## remove .venv, caches, the trained model, its output and the sample data; your own images are kept
	rm -rf $(VENV) $(CACHES) local_test/test_dir/model local_test/test_dir/output
	rm -f local_test/test_dir/.digits-* local_test/test_dir/*/[0-9]/digit-*.png local_test/test_dir/*/*/*/[0-9]/digit-*.png
	find local_test/test_dir -type d -empty -delete
	find . -name __pycache__ -type d -exec rm -rf {} +

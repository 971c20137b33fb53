# The commands of the project. `make help` lists them.
#
#   make train                          the main job: a small Griffin on text that Python carries
#   make train RUN=hawk_quickstart      another file of gin/runs/
#   make train ARGS='--gin.STEPS=200'   arguments for the command behind the target
#   make test PYTHON=python3.12         another interpreter, in an environment of its own
#   make install EXTRAS=gpu             extras of pyproject.toml: gpu, tpu, tables, http, hub, datasets, tiktoken, ray,
#                                       harness, wandb, mlflow, gcs, s3, tunix, notebook, test

PYTHON ?= python3
EXTRAS ?=
RUN ?= griffin_quickstart
ARGS ?=

VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(patsubst python%,%,$(notdir $(PYTHON))))
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help train test quick lint types format docs install clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@sed -n '3,/^$$/s/^#   /  /p' $(MAKEFILE_LIST)

train: $(VENV)/.installed  ## install what is needed and train; RUN= names a file of gin/runs/
	$(BIN)/python -m launch.train gin/runs/$(RUN).gin --run_dir=runs/$(RUN) $(ARGS)

test: $(VENV)/.installed-test  ## install what is needed and run the tests; ARGS= goes to pytest
	$(BIN)/python -m pytest $(ARGS)

# What `make quick` tests: files that need seconds each.
QUICK_TESTS := tests/test_floors.py tests/documentation/test_names.py \
  tests/documentation/test_site.py tests/documentation/test_contributing.py \
  tests/kernels/test_matmul.py tests/kernels/test_causal_conv.py tests/layers/test_layers.py \
  tests/data/test_packing.py tests/training/test_json_files.py tests/training/test_step.py \
  tests/inference/test_sampling.py tests/config/test_config.py

quick: lint  ## what to run before a commit: style, types and fast tests, under two minutes
	$(BIN)/python -m pytest $(QUICK_TESTS) $(ARGS)

lint: $(VENV)/.installed-test  ## check the code's style and its types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint --failure-threshold=style docker/*.Dockerfile
# Python 3.12 has a later JAX, whose types differ.
	@[ ! -d $(VENV)/lib/python3.11 ] || $(BIN)/basedpyright --pythonpath $(BIN)/python

types: $(VENV)/.installed-test  ## check the types alone, by pyright
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# Not --quiet: mkdocs would count no warnings.
docs: $(VENV)/.installed-docs  ## build the site of docs/ into site/ and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(VENV)/.installed-test  ## bring the code into the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed  ## only install

clean:  ## remove caches, but neither runs nor environments
	rm -rf cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# Every stamp is newer than what it was installed from; one per set of extras.
REQUIREMENTS := pyproject.toml $(wildcard requirements/*)

$(VENV)/bin/python:
	@python="$$(sh requirements/find_python.sh $(PYTHON))" && echo "Creating $(VENV) with $$python" && "$$python" -m venv $(VENV)

$(VENV)/.installed: EXTRA_NAMES = $(EXTRAS)
$(VENV)/.installed-test: EXTRA_NAMES = test $(EXTRAS)
$(VENV)/.installed-docs: EXTRA_NAMES = docs $(EXTRAS)
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-docs: $(BIN)/python $(REQUIREMENTS) $(if $(EXTRAS),FORCE)
	@echo "Installing the dependencies into $(VENV): a few minutes the first time"
	@$(BIN)/python requirements/list.py $(EXTRA_NAMES) > $(VENV)/requirements.txt
	@version="$$($(BIN)/python -c 'import sys; print("%d%d" % sys.version_info[:2])')" && \
	  $(BIN)/python -m pip install --disable-pip-version-check --no-compile -qq \
	    -r $(VENV)/requirements.txt -c requirements/constraints-py$$version.txt
# Bytecode, on all cores: without it the first import of seqio takes 12 s and more. A few files of
# the libraries are not for this Python, so the exit status says nothing.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	@touch $(VENV)/.installed $@

.PHONY: FORCE
FORCE:

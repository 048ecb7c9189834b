# SPDX-License-Identifier: Apache-2.0
#
# Each target does its own set-up: a virtual environment in .venv, dependencies, the native build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc python -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help setup demo test test-sanitize lint format bench-cpu wheel clean

help:
	@echo "make demo           the method on a photograph; writes hired_demo.png"
	@echo "make test           all tests, the sanitizers' too"
	@echo "make lint           ruff, clang-format"
	@echo "make bench-cpu      the operators against PyTorch on this CPU"
	@echo "make setup          what the others begin with: .venv, dependencies, native build"

# PyTorch first and by itself: later steps must find it and not fetch another.
$(BIN)/.dependencies: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH) numpy
	$(BIN)/python -m pip install -q "setuptools>=70" wheel cmake ninja pybind11
	touch $@

$(BIN)/.installed: $(BIN)/.dependencies setup.py CMakeLists.txt $(SOURCES)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[test]"
	touch $@

setup: $(BIN)/.installed

demo: setup
	$(BIN)/python -m hired_kernels demo

test: setup test-sanitize
	$(BIN)/python -m pytest tests

# Address and undefined-behaviour sanitizers over csrc, without Python.
test-sanitize: $(BIN)/.dependencies
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DHIRED_PYTHON=OFF -DHIRED_NATIVE_TESTS=ON -DHIRED_SANITIZE=address,undefined > /dev/null
	$(BIN)/cmake --build build/sanitize
	build/sanitize/native_tests

lint: $(BIN)/.dependencies
	$(BIN)/python -m pip install -q ".[lint]" --no-build-isolation --no-deps --dry-run > /dev/null
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

bench-cpu: setup
	$(BIN)/python benchmarks/bench_select.py

clean:
	rm -rf build dist *.egg-info hired_kernels/*.so

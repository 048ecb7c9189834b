# SPDX-License-Identifier: Apache-2.0
#
# Each target does its own set-up: a virtual environment in .venv, dependencies, the native build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# GPU architectures of the build: those of the GPU that is there, else none (a list like "61;90",
# "all" or "auto" asks for more: docs/install.md).
HIRED_CUDA_ARCHS ?= $(shell nvidia-smi > /dev/null 2>&1 && echo auto || echo none)
export HIRED_CUDA_ARCHS
VENV := .venv
BIN := $(VENV)/bin
# Two processes of one thread: what the smallest machine has. Tests of threads ask for their own. Who
# is done first takes over half of what the other has before it. The slowest tests are named.
SLOWEST := --durations=20
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal $(SLOWEST)
# Those that run against every backend.
TARGET_TESTS := $(patsubst %,tests/operators/test_%.py,parity invariants cls_attention)
SANITIZE_TESTS := $(TARGET_TESTS) $(patsubst %,tests/operators/test_%.py,bad_calls host_arithmetic cpu_queries)
EMULATED_TESTS := $(TARGET_TESTS) $(patsubst %,tests/emulator/test_%.py,emulated emulated_queries) \
  tests/gpu/test_gpu_rehearsal.py::test_a_wait_in_vain_says_what_it_is_for
CUDA_BUILD_TESTS := $(patsubst %,tests/build/test_%.py,cuda_build cuda_toolchain machine_code symbols) \
  tests/build/test_deployment.py::test_library_needs_no_python \
  $(patsubst %,tests/operators/test_%.py,backends parity)
INTERPRETED_TESTS := $(wildcard tests/operators/test_triton*.py) $(TARGET_TESTS) tests/operators/test_bad_calls.py
SOURCES := $(shell find csrc python tests/emulator tests/build/native -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help setup demo check test sanitizers test-sanitize test-emulated test-triton test-vllm \
  test-oldest test-around test-eval test-browser test-cuda-build lint format first-contact test-gpu bench \
  gpu-bundle bench-cpu bench-model \
  bench-load bench-vllm evidence train-evidence wheel pascal-compiler kernel-report clean always

help:
	@echo "make demo           the method on a picture, and a question; writes out/demo.png"
	@echo "make check          style and the operators' tests: what to run after every change"
	@echo "make test           all tests, the sanitizers' and the emulator's too"
	@echo "make test-vllm      the vLLM plugin's tests, in .venv-vllm with vLLM's CPU build"
	@echo "make test-around    models with PEFT, torchao, DeepSpeed, in an environment of their own"
	@echo "make test-eval      the lmms-eval plugin's tests, in .venv-eval"
	@echo "make test-browser   the demo's page in Chromium, which is fetched: 68 MB, with npm"
	@echo "make test-oldest    the tests of models with the oldest transformers that is claimed"
	@echo "make test-cuda-build  the package built for HIRED_CUDA_ARCHS, and the tests of its CUDA code"
	@echo "make first-contact  on a GPU: right results first, then times, in five minutes: docs/gpu.md"
	@echo "make test-gpu       on a GPU: the kernels' tests and compute-sanitizer"
	@echo "make bench          on a GPU: the kernels' speed, beside PyTorch's"
	@echo "make gpu-bundle     builds for a machine with a GPU, made beforehand: build/gpu-bundle"
	@echo "make lint           ruff, mypy, clang-format"
	@echo "make bench-cpu      the operators against PyTorch, and a tiny LLaVA-NeXT, on this CPU"
	@echo "make bench-model    on a GPU: LLaVA-NeXT-7B's shape, stock, as published, switched on"
	@echo "make bench-load     on a GPU: what selection costs with 1 to 32 requests at a time"
	@echo "make bench-vllm     on this CPU: vLLM with the plugin beside stock, 1 to 32 requests at a time"
	@echo "make evidence       accuracy against budget, with the trained models that come along"
	@echo "make train-evidence trains one of them: SUBJECT=signs or pages, SEED=1; within an hour on a core"
	@echo "make wheel          dist/*.whl for ARCHS=\"61;90\", or all; else for the GPU that is here"
	@echo "make pascal-compiler  a compiler for sm_61 where nvcc is of CUDA 13, under build/pascal"
	@echo "make kernel-report  registers, spills, trips to memory of each kernel: docs/kernels.md"
	@echo "make setup          what the others begin with: .venv, dependencies, native build"

# PyTorch first and by itself: later steps must find it and not fetch another.
$(BIN)/.dependencies: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH) numpy
	$(BIN)/python -m pip install -q "setuptools>=77" wheel cmake ninja pybind11
	touch $@

# What the build depends on besides files. Written when it changes, and then the build is done again.
BUILD_FLAGS := $(foreach name,CXX CXXFLAGS LDFLAGS CMAKE_ARGS CUDACXX CUDA_HOME HIRED_NATIVE \
  HIRED_CUDA_ARCHS HIRED_CUDA_PTX HIRED_PASCAL_COMPILER HIRED_SPIN_LIMIT,$(name)=$($(name)))
$(BIN)/.flags: $(BIN)/.dependencies always
	@echo '$(BUILD_FLAGS)' | cmp -s - $@ || echo '$(BUILD_FLAGS)' > $@

$(BIN)/.installed: $(BIN)/.flags pyproject.toml setup.py CMakeLists.txt $(SOURCES)
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[test]"
	touch $@

setup: $(BIN)/.installed

demo: setup
	$(BIN)/python -m hired_kernels demo

check: setup lint
	$(PYTEST) tests/operators

test: setup
	$(MAKE) test-sanitize
	$(MAKE) test-emulated
	$(MAKE) test-triton
	$(PYTEST) tests

# Asked before anything is built: where the compiler's sanitizers are missing, the linker or the
# loader complains of it in riddles.
SANITIZERS = $(foreach name,asan ubsan,$(shell $${CXX:-c++} -print-file-name=lib$(name).so))
sanitizers:
	@mkdir -p build
	@echo 'int main() {}' | $${CXX:-c++} -fsanitize=address,undefined -x c++ -o build/sanitized - && \
	  test -z "$$(LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 build/sanitized 2>&1)" || \
	  { echo "expected a C++ compiler with libasan and libubsan, its address and undefined-behaviour" \
	    "sanitizers, got $${CXX:-c++} without: install them (Debian: g++; Fedora: gcc-c++ libasan" \
	    "libubsan) or name another compiler with CXX=" >&2; exit 1; }

# The native code under the address and undefined-behaviour sanitizers: a copy of the package, built
# for it, put before the installed one. Python and PyTorch leak by design; our code has no heap.
SANITIZED := build/sanitize/package
test-sanitize: sanitizers setup
	HIRED_NATIVE=1 HIRED_SANITIZE=address,undefined $(BIN)/python setup.py -q build \
	  --build-base build/sanitize --build-lib $(SANITIZED)
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 HIRED_TEST_SANITIZED=1 \
	  HIRED_TEST_EXAMPLES=$${HIRED_TEST_EXAMPLES:-50} PYTHONPATH=$(SANITIZED) $(PYTEST) $(SANITIZE_TESTS)

# The CUDA kernels' own source on the host, threads as fibers, under the same sanitizers.
EMULATED := $(CURDIR)/build/emulator/libhired_emulated.so
test-emulated: sanitizers setup
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/emulator -G Ninja -DHIRED_EMULATOR=ON \
	  -DHIRED_CUDA_ARCHS=none -DHIRED_SANITIZE=address,undefined "-DHIRED_OPTIMISE=-O1 -fno-var-tracking" \
	  -DHIRED_TORCH_DIR="$$($(BIN)/python -c 'import torch; print(torch.__path__[0])')" \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build build/emulator --target hired_emulated
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 HIRED_TEST_TARGET=emulated \
	  HIRED_TEST_EXAMPLES=$${HIRED_TEST_EXAMPLES:-20} \
	  HIRED_EMULATED_LIBRARY=$(EMULATED) $(PYTEST) $(EMULATED_TESTS)

# The Triton kernels, interpreted: of each test two cases, or TRITON_TESTS= for the whole list.
TRITON_TESTS := -m "not whole_list"
test-triton: setup
	TRITON_INTERPRET=1 HIRED_TEST_TARGET=triton HIRED_TEST_EXAMPLES=$${HIRED_TEST_EXAMPLES:-2} \
	  $(PYTEST) $(TRITON_TESTS) $(INTERPRETED_TESTS)

# vLLM is tested in an environment of its own, with the native code that `setup` built.
# `make test-vllm VLLM=0.31.0` tries another version.
VLLM := 0.32.0
VLLM_BIN := .venv-vllm/bin
VLLM_READY := $(VLLM_BIN)/.installed-$(VLLM)
$(VLLM_READY): pyproject.toml tools/cpu_vllm.py tools/cpu_torchvision.py
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install -q $(TORCH)
	$(VLLM_BIN)/python tools/cpu_vllm.py $(VLLM) 0.28.0
	$(VLLM_BIN)/python -m pip install -q pytest pytest-xdist hypothesis
	HIRED_NATIVE=0 $(VLLM_BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	rm -f $(VLLM_BIN)/.installed-*
	touch $@

test-vllm: setup $(VLLM_READY)
	OMP_NUM_THREADS=1 timeout 1800 $(VLLM_BIN)/pytest -n 2 --dist loadfile $(SLOWEST) \
	  tests/serving tests/models/test_torchvision.py

# The oldest transformers that is claimed, in an environment of its own; `test` has the newest.
OLDEST := transformers==5.6.0
OLDEST_BIN := .venv-oldest/bin
$(OLDEST_BIN)/.installed: pyproject.toml
	test -x $(OLDEST_BIN)/python || $(PYTHON) -m venv .venv-oldest
	$(OLDEST_BIN)/python -m pip install -q $(TORCH) numpy
	$(OLDEST_BIN)/python -m pip install -q $(OLDEST) pillow accelerate "setuptools>=77" wheel pytest \
	  pytest-xdist hypothesis
	HIRED_NATIVE=0 $(OLDEST_BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

# All but what loads saved models, for which that one wants torchvision.
test-oldest: setup $(OLDEST_BIN)/.installed
	OMP_NUM_THREADS=1 $(OLDEST_BIN)/pytest -n 2 tests/models --ignore tests/models/test_vision_tower.py

# What is used around models, by versions that were tried: adapters, quantisers, DeepSpeed.
AROUND := transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 torchao==0.18.0
AROUND_BIN := .venv-around/bin
$(AROUND_BIN)/.installed: pyproject.toml
	test -x $(AROUND_BIN)/python || $(PYTHON) -m venv .venv-around
	$(AROUND_BIN)/python -m pip install -q $(TORCH) numpy
	$(AROUND_BIN)/python -m pip install -q $(AROUND) pillow "setuptools>=77" wheel ninja pytest \
	  pytest-xdist hypothesis
	DS_BUILD_OPS=0 $(AROUND_BIN)/python -m pip install -q --no-build-isolation deepspeed==0.19.8
	HIRED_NATIVE=0 $(AROUND_BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

test-around: setup $(AROUND_BIN)/.installed
	OMP_NUM_THREADS=1 $(AROUND_BIN)/pytest tests/models/test_adapters.py tests/models/test_deepspeed.py

# lmms-eval names fifty packages that the tests do without. It wants torchvision, which for a CPU build
# of PyTorch may have to be helped.
EVAL := transformers==5.24.0 accelerate==1.15.0 "filelock<4" datasets decord evaluate loguru numexpr \
  pydantic pytablewriter python-dotenv pytz sacrebleu tenacity
EVAL_BIN := .venv-eval/bin
$(EVAL_BIN)/.installed: pyproject.toml
	test -x $(EVAL_BIN)/python || $(PYTHON) -m venv .venv-eval
	$(EVAL_BIN)/python -m pip install -q $(TORCH) numpy
	$(EVAL_BIN)/python -m pip install -q $(EVAL) pillow "setuptools>=77" wheel pytest pytest-xdist \
	  hypothesis
	$(EVAL_BIN)/python -m pip install -q --no-deps lmms-eval==0.7.3 torchvision==0.28.0
	$(EVAL_BIN)/python -c "import torchvision" 2> /dev/null || $(EVAL_BIN)/python tools/cpu_torchvision.py
	HIRED_NATIVE=0 $(EVAL_BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

test-eval: setup $(EVAL_BIN)/.installed
	OMP_NUM_THREADS=1 $(EVAL_BIN)/pytest -n 2 $(SLOWEST) tests/eval

# The demo's page in a real browser, under build/browser; `test` runs it only where that is.
test-browser: setup
	$(BIN)/python tools/fetch_browser.py
	HIRED_TEST_BROWSER=1 $(BIN)/pytest tests/cli/test_browser.py

# On the package, built for HIRED_CUDA_ARCHS: what looks at the CUDA code of a build.
test-cuda-build: setup
	$(BIN)/python -c 'import sys; from hired_kernels import backends; \
	  sys.exit(None if any(backends.cuda_architectures()) else \
	  "expected CUDA code in the build, got none: HIRED_CUDA_ARCHS says for which GPUs")'
	$(PYTEST) $(CUDA_BUILD_TESTS)

bench-vllm: setup $(VLLM_READY)
	$(VLLM_BIN)/python benchmarks vllm

$(BIN)/.lint: Makefile $(BIN)/.dependencies
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q ruff==0.17.5 clang-format==23.1.5 mypy==2.4.0
	touch $@

lint: $(BIN)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(BIN)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# On a machine with a GPU, with whatever PyTorch that Python has: the package of build/gpu-bundle, or
# one that is built there. docs/gpu.md says in which order.
first-contact:
	$(PYTHON) tools/gpu/first_contact.py

test-gpu:
	$(PYTHON) tools/gpu/suites.py

bench:
	$(PYTHON) tools/gpu/benchmark.py 295 gpu

gpu-bundle: pascal-compiler
	$(PYTHON) tools/gpu/bundle.py

bench-cpu: setup
	$(BIN)/python benchmarks operators
	$(BIN)/python benchmarks model

bench-model:
	$(PYTHON) tools/gpu/benchmark.py 590 model --size 7b

bench-load:
	$(PYTHON) tools/gpu/benchmark.py 295 load

evidence: setup
	$(BIN)/python benchmarks evidence
	$(BIN)/python benchmarks evidence.decide

# One of its models: SUBJECT=pages, SEED=2, and FLAGS="--size large --device cuda" on a GPU.
SUBJECT := signs
SEED := 1
train-evidence: setup
	$(BIN)/python benchmarks evidence.train --subject $(SUBJECT) --seed $(SEED) $(FLAGS)

wheel: $(BIN)/.dependencies
	HIRED_NATIVE=1 HIRED_CUDA_ARCHS="$(or $(ARCHS),auto)" $(BIN)/python -m pip wheel -q \
	  --no-build-isolation --no-deps -w dist .
	@ls -t dist/*.whl | head -n 1

pascal-compiler:
	$(PYTHON) tools/make_pascal_compiler.py

kernel-report: setup
	$(BIN)/python tools/kernel_report.py --triton --machine-code --markdown docs/kernels.md

clean:
	rm -rf build dist *.egg-info hired_kernels/*.so

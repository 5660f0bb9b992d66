# make install      the virtual environment .venv with everything, C++ helpers compiled
# make quickstart   text -> vocabulary -> pre-training -> Hugging Face -> fine-tuning, in minutes on a CPU
# make test         all CPU tests but the slow ones; make test-all runs those too
# make kernels      the CUDA kernels alone, which make install builds too where nvcc is
# make sanitize     the C++ of the data with address and undefined-behaviour sanitizers, under its tests
# make bench        the training step against transformers: speed, short texts, memory; half an hour on two idle cores
# make gpu          on a machine with a GPU and nvcc: tests on the GPU, then its benchmarks; PYTHON needs PyTorch
# make gpu-sanitize   the kernels' tests there under compute-sanitizer: memory, races in shared memory
# make lint types imports   what CI checks besides; make format mends what can be mended
# PYTHON=python3.12 chooses the interpreter of a new .venv.

PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: install quickstart kernels test test-all sanitize bench gpu gpu-sanitize lint format types imports clean

install: .venv/installed

# PyTorch first and alone, exactly the pinned version: a CPU build that pip can see is taken as it is.
.venv/torch-installed: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" --constraint constraints.txt
	touch $@

# The build tools are installed first and used without isolation, so that they too are the pinned ones.
.venv/installed: .venv/torch-installed setup.py tools/build_kernels.py constraints.txt $(wildcard csrc/* csrc/*/*)
	$(BIN)/python -m pip install --quiet setuptools wheel pybind11 --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --constraint constraints.txt \
	  --editable '.[dev,quickstart,tensorboard]'
	touch $@

quickstart: install
	$(BIN)/python tools/quickstart.py

kernels: .venv/torch-installed
	$(BIN)/python tools/build_kernels.py

# Two at a time: much of it waits for processes and the disk. A file stays on one worker, for its fixtures.
test: install
	$(PYTEST) -n 2 --dist loadfile -m "not slow"

test-all: install
	$(PYTEST)

# In a folder of its own, as the package must lie beside the extension. The C++ library is preloaded too: the
# sanitizer looks for its exceptions when it starts. Leaks are not looked for: the interpreter never frees everything.
SANITIZED := build/sanitize
PRELOADED := $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libubsan.so) \
  $(shell gcc -print-file-name=libstdc++.so)

sanitize: install
	mkdir -p $(SANITIZED)
	cp -r csrc megatron tests tools setup.py pyproject.toml README.md LICENSE $(SANITIZED)
	rm -f $(SANITIZED)/megatron/_C*.so
	cd $(SANITIZED) && CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g" \
	  $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	cd $(SANITIZED) && LD_PRELOAD="$(PRELOADED)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  PYTHONPATH=. OMP_NUM_THREADS=1 $(CURDIR)/$(BIN)/python -m pytest -q -p no:cacheprovider tests/data

bench: install
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/lengths.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/render.py

# With PYTHON itself, no network. What it lacks (setuptools, pybind11, pytest, pytest-timeout and what they need, all
# pure Python) may lie in wheels/, which git ignores.
GPU_PYTHON := PYTHONPATH=$(CURDIR)/build/gpu:$(CURDIR) $(PYTHON)
ON_GPU := "(cuda and not emulated) or cublas"

gpu:
	test ! -d wheels || $(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target build/gpu wheels/*.whl
	rm -f megatron/libmegatron_cuda.so
	$(GPU_PYTHON) setup.py --quiet build_ext --inplace
	$(GPU_PYTHON) -m pytest -q -p no:cacheprovider -k $(ON_GPU) tests/ops tests/layouts/test_cuda.py tests/layouts/test_layouts.py
	$(GPU_PYTHON) benchmarks/gpu.py

gpu-sanitize:
	for tool in memcheck racecheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	    env $(GPU_PYTHON) -m pytest -q -p no:cacheprovider -k $(ON_GPU) tests/ops || exit 1; \
	done

lint: install
	$(BIN)/ruff check .

format: install
	$(BIN)/ruff check --fix .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

clean:
	rm -rf .venv build runs *.egg-info megatron/_C*.so .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

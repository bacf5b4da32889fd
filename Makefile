# make bench: what gdcore is and how fast, on this machine.   make test: is it right.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: bench test lint compiled sanitize clean

bench: .venv/installed
	$(BIN)/python -m gdcore.bench

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# The compiled-code checks under another Triton: make compiled TRITON=3.6.0 (or TRITON=newest)
compiled: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv-triton-$(TRITON) \
		$(if $(filter newest,$(TRITON)),triton,triton==$(TRITON))
	PYTHONPATH=.venv-triton-$(TRITON) $(BIN)/python -m pytest tests/kernels/test_compiled.py tests/kernels/test_launch.py

# On a GPU: every kernel once under NVIDIA's checks of memory accesses and of races
SANITIZER ?= $(firstword $(wildcard /usr/local/cuda/bin/compute-sanitizer) compute-sanitizer)
sanitize: .venv/installed
	$(SANITIZER) --tool memcheck --error-exitcode 1 $(BIN)/python tests/sanitize.py
	$(SANITIZER) --tool racecheck --print-limit 100000 $(BIN)/python tests/sanitize.py | $(BIN)/python tests/hazards.py

.venv/installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv .venv-triton-* build dist *.egg-info

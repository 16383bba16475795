# Each target stands alone in a fresh clone: it makes .venv and installs what it needs first.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: venv demo test check train bench findings clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[trace,dev]"
	touch $(STAMP)

demo: $(STAMP)  ## generate one sample of every task, and see what the model believed at every step
	$(BIN)/dit-lens demo --out runs/demo

test: $(STAMP)  ## all tests, a process for every core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: $(STAMP)  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train: $(STAMP)  ## make the organisms again, or go on with them
	$(BIN)/python training/train.py

bench: $(STAMP)  ## what capture costs
	$(BIN)/python benchmarks/capture_overhead.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/cka.py
	$(BIN)/python benchmarks/pca.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/real_size.py --out docs/performance.md

findings: $(STAMP)  ## every experiment that docs/findings.md reports
	$(BIN)/python analyses/all.py

clean:
	rm -rf .venv runs

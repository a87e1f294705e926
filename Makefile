PYTHON ?= python3
BIN := .venv/bin
# Two processes of one thread each: many tests wait for notebooks.
TWO := OMP_NUM_THREADS=1 $(BIN)/python -m
PYTEST := $(TWO) pytest --numprocesses 2 --dist loadfile

.PHONY: install demo test lab lint clean

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

demo: install
	$(BIN)/python -m rislib demo

lint: install
	$(BIN)/python -m ruff check .

test: lint
	$(PYTEST)
	$(TWO) rislib course run --profile ci --patience 2 --processes 2
	RISLIB_PROFILE=ci RISLIB_STRICT=1 $(PYTEST) --nbval-lax --nbval-sanitize-with notebooks/nbval.cfg notebooks/solutions

lab: install
	$(BIN)/jupyter lab

clean:
	rm -rf demo data/refmini* .pytest_cache .ruff_cache .hypothesis

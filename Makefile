# make repro     the whole loop on this machine, from a fresh clone to report-out/index.html
# make test      lint, and pytest; MARKS="not slow" adds the tests that .ci/run runs too
# make lint      ruff's rules and format, mypy
# make coverage  pytest, with the part of the code that it ran
# make soak      kill every stage at random moments, and compare how it ends; an hour
# make pretrain  train models of the same recipe over those of models/tabletop: other bytes, hours

PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)

PYTEST = pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(if $(MARKS),-m "$(MARKS)")

.PHONY: repro test lint coverage soak pretrain env

repro: env
	vfrl plan --last-line
	dvc repro
	vfrl show

test: lint
	$(PYTEST)

lint: env
	ruff check .
	ruff format --check .
	mypy

coverage: env
	$(PYTEST) --cov --cov-report=term:skip-covered

soak: env
	python -m benchmarks.soak

pretrain: env
	@echo "Trains the VAE, the two generators, the two judges and the CLIP one after the other: hours on 2 cores. Can be stopped and resumed."
	python -m stages.pretrain --out models/tabletop
	dvc commit --force pretrain

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $@

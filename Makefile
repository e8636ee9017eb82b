# Everything happens in .venv, which the first target that needs it builds.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check docs bench clean

demo: .venv/ready
	$(BIN)/stepclr demo

# Two test files at a time, with one thread each (tests/conftest.py): more would slow each other down.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile

test: .venv/ready
	$(PYTEST)

test-all: .venv/ready
	$(PYTEST) -m "" --jaxtyping-packages=stepclr,beartype.beartype

check: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files

# The site, in site/: open site/index.html. The variable silences an announcement of the theme.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The short benchmarks, with the peers. CIFAR=DIR and IMAGENETTE=DIR name class folders of JPEG files for those that need images.
bench: .venv/bench
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/small_conv.py
ifdef CIFAR
	$(BIN)/python benchmarks/train_step.py $(CIFAR) --seconds 30
endif
ifdef IMAGENETTE
	$(BIN)/python benchmarks/loader.py $(IMAGENETTE)
	$(BIN)/python benchmarks/embed.py $(IMAGENETTE)
ifdef CIFAR
	$(BIN)/python benchmarks/views.py --cifar $(CIFAR) --imagenette $(IMAGENETTE)
endif
endif

clean:
	rm -rf .venv

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stepclr needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/bench: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

# The whole set-up: `make demo` and `make test` work on a fresh clone of a Debian machine with
# Python 3.11 or newer. As root they also install the system packages that the viewer tests need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
GUI_PACKAGES := xvfb xauth libgl1 libgl1-mesa-dri libegl1 libxkbcommon-x11-0 libxcb-cursor0 \
	libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 \
	libdbus-1-3 libfontconfig1

# a process of tests per core and one more, since some wait; `make test TESTS=tests/io WORKERS=0` runs
# one folder in one
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, (os.cpu_count() or 1) + 1))')
TESTS ?=
PYTEST := OMP_NUM_THREADS=1 xvfb-run -a -s "-screen 0 1280x1024x24" $(BIN)/python -m pytest \
	--numprocesses $(WORKERS) --dist worksteal

# pip compiles what it installs on one core: tests of other packages too, and large packages of which a
# few modules are used, which are compiled when they are imported. A few files are templates, or for
# newer Pythons, and do not compile: whoever imports one is told so.
LATER := [/\\](tests?|itk|ray|OpenGL|fontTools|debugpy|jedi|pip|setuptools)[/\\]
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '$(LATER)' $(VENV)/lib || true

.PHONY: setup demo test coverage check format wheel-demo screenshots system-packages clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "medseg needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt \
		--editable '.[napari,dev,benchmarks,cluster]'
	$(COMPILE)
	@touch $@

demo: setup
	$(BIN)/medseg demo --out demo-out

# Format, lint, types, import contracts, then every test, the viewer tests on a virtual screen.
test: setup system-packages check
	$(PYTEST) $(TESTS)

# The same tests, and which lines and branches they reach. Apart from `test`, because watching every
# line costs much time and proves nothing more.
coverage: setup system-packages
	$(PYTEST) --cov --cov-report=term:skip-covered $(TESTS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Builds the wheel, installs it into an environment that holds only what its metadata names, and
# runs the demo from there. The named packages are links to those that `setup` has installed.
wheel-demo: setup
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --quiet --wheel --outdir dist
	$(BIN)/python -m venv .venv-wheel
	$(BIN)/python .ci/fill_environment.py dist/*.whl .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --no-index --no-deps dist/*.whl
	.venv-wheel/bin/python -m pip check
	cd dist && ../.venv-wheel/bin/medseg demo --out demo-out
	rm -rf .venv-wheel

# The pictures of the viewer in the documents.
screenshots: setup system-packages
	xvfb-run -a -s "-screen 0 1600x1200x24" $(BIN)/python -m medseg_napari.screenshots --out docs/images

system-packages:
	@if dpkg -s $(GUI_PACKAGES) >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $(GUI_PACKAGES) >/dev/null; \
	elif command -v xvfb-run >/dev/null 2>&1; then :; \
	else echo "The viewer tests need: $(GUI_PACKAGES). Install them, or run make as root."; exit 1; fi

clean:
	rm -rf $(VENV) .venv-wheel dist demo-out .coverage .pytest_cache .mypy_cache .ruff_cache

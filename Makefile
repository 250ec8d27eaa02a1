# The whole set-up: `make demo` and `make test` work on a fresh clone of a Debian machine with
# Python 3.11 or newer. As root they also install the system packages that the viewer tests need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
GUI_PACKAGES := xvfb xauth libgl1 libgl1-mesa-dri libegl1 libxkbcommon-x11-0 libxcb-cursor0 \
	libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 \
	libdbus-1-3 libfontconfig1

.PHONY: setup demo test check format wheel-demo system-packages clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "medseg needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[napari,dev,benchmarks]'
	@touch $@

demo: setup
	$(BIN)/medseg demo --out demo-out

# Everything that CI checks: format, lint, types, import contracts, tests with the viewer tests on a
# virtual screen, then the wheel in an empty environment.
test: setup system-packages check
	xvfb-run -a -s "-screen 0 1280x1024x24" \
		$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Builds the wheel, installs it into an empty environment and runs the demo from there.
wheel-demo: setup
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --quiet --wheel --outdir dist
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --upgrade pip
	.venv-wheel/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd dist && ../.venv-wheel/bin/medseg demo --out demo-out
	rm -rf .venv-wheel

system-packages:
	@if dpkg -s $(GUI_PACKAGES) >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $(GUI_PACKAGES) >/dev/null; \
	elif command -v xvfb-run >/dev/null 2>&1; then :; \
	else echo "The viewer tests need: $(GUI_PACKAGES). Install them, or run make as root."; exit 1; fi

clean:
	rm -rf $(VENV) .venv-wheel dist demo-out .coverage .pytest_cache .mypy_cache .ruff_cache

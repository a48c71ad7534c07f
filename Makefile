# The tasks of this repository. `make` alone lists them; `make demo` and `make test` start from a bare clone.
#   make demo ARGS='--seed 1'      extra arguments for the program
#   make test ARGS='-k losses'     extra arguments for pytest
#   make test PYTHON=/path/to/python3.12     another interpreter for a new environment (3.11 or newer)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# Lies beside the environment while a set-up runs. If it is still there at the next call, that set-up was killed.
UNFINISHED := .venv.unfinished
PYTHON ?=
ARGS ?=

# One thread per process: the runner and pytest use the cores (with neighbours, two threads were 4 to 6 times slower than one).
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS
# Jupyter prefers this environment's kernel to one of the same name in the user's home.
export JUPYTER_PREFER_ENV_PATH := 1

OLD_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
NOTEBOOKS := find notebooks -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*'
STRIP := $(BIN)/nbstripout --keep-id --extra-keys \
	'metadata.papermill metadata.widgets metadata.language_info cell.metadata.papermill cell.metadata.execution'

.DEFAULT_GOAL := help
.PHONY: help demo benchmark dashboard gallery test lab setup format lint types notebooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "demo, benchmark, dashboard, test and lab take ARGS='...'; each target sets up $(VENV) by itself when needed."

demo: $(STAMP) ## set up, train the methods on the embedded scenes, write the report
	$(BIN)/cisskit demo $(ARGS)

benchmark: $(STAMP) ## set up, run every method and ablation on the scenes, write notebooks/RESULTS.md (resumable)
	$(BIN)/cisskit benchmark $(ARGS)

dashboard: $(STAMP) ## set up, make one page over the folder runs/ and open it (needs no server)
	$(BIN)/cisskit dashboard --open $(ARGS)

gallery: $(STAMP) ## set up, draw every picture of the notebooks from the folder runs/ onto one page, gallery/index.html
	$(BIN)/cisskit gallery $(ARGS)

test: $(STAMP) lint types ## set up, lint, check types, run the tests on all cores
	$(BIN)/python -m pytest -q -n logical --dist loadgroup $(ARGS)

lab: $(STAMP) ## set up, open JupyterLab in notebooks/ (this machine only, with a token)
	$(BIN)/python -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

setup: $(STAMP) ## only the set-up

format: $(STAMP) ## rewrite code and notebooks: ruff, and outputs out of the notebooks
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .
	$(NOTEBOOKS) -exec $(STRIP) {} +

lint: $(STAMP) notebooks ## ruff, notebooks included: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	$(BIN)/mypy

notebooks: $(STAMP) ## check that the notebooks hold no outputs (make format removes them)
	@$(NOTEBOOKS) -exec $(STRIP) --verify {} +

clean: ## remove caches and build leftovers; keeps .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find cisskit data_prep notebooks tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# The stamp names this folder: an environment that was moved or copied here holds the paths of the old place.
MOVED := $(shell test ! -e $(STAMP) || grep -qsxF '$(CURDIR)' $(STAMP) || echo moved)

# Without a stamp the environment is completed: packages that are there stay, the others are installed. One whose set-up was
# killed may hold half a package, so it is made anew. The stamp is written last.
define SETUP
if command -v flock >/dev/null 2>&1; then
    exec 9<Makefile
    flock -n 9 || { echo "set-up: another one is running in this folder; waiting for it"; flock 9; }
fi
if [ -e $(STAMP) ] && [ ! -e $(UNFINISHED) ] && [ -z "$(MOVED)" ] && $(BIN)/python -c '' 2>/dev/null &&
    [ -z "$$(find pyproject.toml constraints.txt Makefile -newer $(STAMP))" ]; then
    exit 0  # the other one has done it
fi
start=$$(date +%s)
if command -v uv >/dev/null 2>&1; then tool=uv; needs='import sys, venv'; else tool=pip; needs='import sys, venv, ensurepip'; fi
if [ -e $(UNFINISHED) ]; then
    echo "set-up: the last one was interrupted, starting again"
    rm -rf $(VENV)
elif [ -n "$(MOVED)" ] || { [ -e $(VENV) ] && ! $(BIN)/python -c '$(OLD_ENOUGH)' 2>/dev/null; }; then
    echo "set-up: $(VENV) was made in another folder or for another Python, making it anew"
    rm -rf $(VENV)
fi
found=
if [ ! -e $(VENV) ]; then
    for each in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do
        if $$each -c "$$needs; $(OLD_ENOUGH)" 2>/dev/null; then found=$$each; break; fi
    done
    if [ -z "$$found" ]; then
        echo "set-up: no Python 3.11 or newer with its venv module among: $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python)." >&2
        echo "Install one (Debian: apt-get install python3 python3-venv; or: uv python install 3.11) or name it: make test PYTHON=/path/to/python3" >&2
        exit 1
    fi
fi
: > $(UNFINISHED)
if [ -n "$$found" ]; then
    echo "set-up: new environment in $(VENV) with $$($$found --version), packages by $$tool."
    echo "        The first time takes 1 to 2 minutes plus the download (3 GB with torch's CUDA libraries; 6 GB on disk)."
    if [ $$tool = uv ]; then uv venv --quiet --python "$$(command -v $$found)" $(VENV); else $$found -m venv $(VENV); fi
else
    echo "set-up: completing $(VENV) by $$tool; seconds when only a few packages differ"
fi
if [ $$tool = uv ]; then
    uv pip install --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[test]'
else
    $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
    $(BIN)/python -m pip install -qq --disable-pip-version-check --compile -c constraints.txt -e '.[test]'
fi
$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name 'Python 3 (ipykernel)' >/dev/null
echo '$(CURDIR)' > $(STAMP)
rm -f $(UNFINISHED)
echo "set-up: done in $$(( $$(date +%s) - start )) s; the next call installs nothing"
endef
export SETUP

$(STAMP): pyproject.toml constraints.txt Makefile $(BIN)/python $(if $(MOVED)$(wildcard $(UNFINISHED)),again)
	@sh -euc "$$SETUP"

# An interpreter that is gone (a dangling link counts as gone) makes the stamp old.
$(BIN)/python: ;

.PHONY: again
again: ;

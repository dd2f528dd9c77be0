# Two commands do everything, set-up included: `make demo` and `make test`.
# Needs only make and Python 3.10 or newer; what gets installed goes into $(VENV).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# files go to the workers in the order of collection, long ones first (tests/conftest.py); nbval, of
# which only notebooks have something, takes a second and a half to import
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder -p no:nbval
PLUGINS := $(wildcard plugins/*/pyproject.toml)

# Idle threads sleep instead of spinning: on a busy machine that is worth a factor of ten.
export OMP_WAIT_POLICY := passive
# SECONDS is a parameter of `make demo`; some shells give the name a meaning of their own.
unexport SECONDS
# Where nobody may write bytecode every process compiles anew what it imports, and pytest every test.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test suite meanwhile emulated others plugins notebooks quick some lint lab docs wheels matrix soak mutants clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo   K-FAC against tuned Nesterov SGD, Adam, Muon and SOAP on CURVES; pictures in demo/ (SECONDS=5 for a short one)'
	@echo 'make test   style, types, import rules and the test suite'
	@echo 'make quick  the same without the browser, the notebooks and what takes long: under two minutes'
	@echo 'make lab    JupyterLab with everything installed, open on the tour'
	@echo 'make docs   the handbook as web pages, in docs/_build/html; a warning is an error'
	@echo 'make wheels  sdists and wheels of all six distributions, tried from the wheels alone'
	@echo 'make matrix  the tests on every Python that is here, and with the lowest versions'
	@echo 'make soak   the long tests'
	@echo 'make gpu    on a machine with a CUDA device: tests, step times and curves there, in eight minutes'
	@echo 'make mutants  makes the mathematics wrong in many small ways and sees that tests notice'
	@echo 'make lint   style, types and import rules alone'
	@echo 'make clean  remove $(VENV), demo/ and caches'

demo: $(VENV)/.lab
	$(BIN)/kfac-lab demo $(if $(SECONDS),--seconds $(SECONDS))

# Two workers, and beside them one process more: browsers and kernels leave cores idle, and so does
# the end of each session. A thread for each, or every process would start as many as there are cores.
test meanwhile: export OMP_NUM_THREADS := 1
test: $(VENV)/.test
	@$(MAKE) --no-print-directory -j 2 suite meanwhile

suite: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# told when it is done; where the suite has ended before, two of these at a time
meanwhile: $(VENV)/.test
	@log=$$(mktemp); $(MAKE) --no-print-directory -O lint others emulated > $$log 2>&1; \
	  code=$$?; cat $$log; rm $$log; exit $$code

emulated: $(VENV)/.test
	$(BIN)/python -m pytest -p no:nbval --device emulated $(ACCELERATOR) -k '$(TELLING)'

# both of the next two in one session; `plugins` holds notebooks too
others: $(VENV)/.test
	$(BIN)/python -m pytest -p tests.grammars --nbval $(filter notebooks/%,$(NOTEBOOKS)) plugins

plugins: $(VENV)/.test
	$(BIN)/python -m pytest plugins  # on their own: here entry points do load

notebooks: $(VENV)/.test
	$(BIN)/python -m pytest -p tests.grammars --nbval $(NOTEBOOKS)

# what is tried on an accelerator too, emulated where there is none
ACCELERATOR := tests/accelerator tests/trajectories
# of them what tells most; `make soak` has the others. A part that another run here has too, on the
# same way through the engine, is left out: estimators with a second structure, recipes with a second face
TELLING := not float32 and not gaussian and not categorical and not sampled and not frobenius
TELLING += and not digest and not no_momentum and not approximate_fisher and not every_step and not [average
TELLING += and not ((exact or empirical) and block_tridiagonal) and not ([kfac and (paper or small_batch))

# further suites that hold there, in `make soak`
EMULATED := $(ACCELERATOR) tests/paper tests/study tests/core tests/optim tests/baselines tests/test_baselines_replayed.py
EMULATED += $(patsubst %,tests/engine/test_%.py,behaviour damping edges exact_output f_tilde fixed_quadratics gamma guard heads)
EMULATED += $(patsubst %,tests/engine/test_%.py,inputs_outputs invariance large_sides loss_scale loss_spellings losses losses_refused)
EMULATED += $(patsubst %,tests/engine/test_%.py,low_rank low_rank_positions moments quadratic_model sampling variance_and_counts)
EMULATED += tests/engine/test_weight_sharing.py
EMULATED += $(patsubst %,tests/invariants/test_%.py,buffers coverage cross_moments global_random_state host_reads interrupt)
EMULATED += $(patsubst %,tests/invariants/test_%.py,no_garbage numerical_failure odd_models threads)
# on their own: here entry points do load
EMULATED_PLUGINS := plugins/kfac-lab-conv/tests plugins/kfac-lab-ekfac/tests/test_block.py

# tests/browser/test_tour.py runs the tour and compares what it prints; without a browser nbval does
TOUR := notebooks/01_tour.ipynb
BROWSER := $(or $(shell command -v chromium),$(shell command -v chromium-browser))
NOTEBOOKS := $(wildcard notebooks/*.ipynb plugins/*/*.ipynb)
NOTEBOOKS := $(if $(BROWSER),$(filter-out $(TOUR),$(NOTEBOOKS)),$(NOTEBOOKS))

# what tells most in two minutes
QUICK := tests/trajectories tests/core tests/engine tests/paper tests/hooks tests/oracles tests/test_layout.py tests/test_public_names.py
QUICK += $(patsubst %,--ignore=tests/%.py,engine/test_programs engine/test_programs_sized engine/test_behaviour engine/test_edges)
QUICK += $(patsubst %,--ignore=tests/%.py,engine/test_processes core/test_row_layouts)

quick: export OMP_NUM_THREADS := 1
quick: $(VENV)/.test
	@$(MAKE) --no-print-directory -j 2 lint some

some: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS) $(QUICK)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

lab: $(VENV)/.lab
	$(BIN)/kfac-lab lab

docs: $(VENV)/.test
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo 'open docs/_build/html/index.html'

wheels: $(VENV)/.release
	$(BIN)/python release/wheels.py

matrix: $(VENV)/.release
	$(BIN)/python release/matrix.py

soak: $(VENV)/.test
	$(BIN)/python -m pytest -m soak
	$(BIN)/python -m pytest -m soak plugins  # on their own, as in `plugins`
	$(BIN)/python -m pytest $(PYTEST_ARGS) --device emulated $(EMULATED)
	$(BIN)/python -m pytest $(PYTEST_ARGS) --device emulated $(EMULATED_PLUGINS)

gpu: $(VENV)/.test
	$(BIN)/python results/gpu.py $(GPU_ARGS)

mutants: $(VENV)/.test
	$(BIN)/python tests/mutants/run.py

clean:
	rm -rf $(VENV) demo build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up: one stamp per set of extras, renewed when a pyproject.toml changes -------------------

PIP := $(BIN)/python -m pip install

$(VENV)/.lab: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[lab]'
	@touch $@

$(VENV)/.test: pyproject.toml $(PLUGINS) | $(BIN)/python
	@# what builds the six distributions is there first: not once more for each; a pip of today, which
	@# goes through the indexes in half the time
	$(PIP) --upgrade pip 'hatchling>=1.27' editables
	@# bytecode is written when a module is first imported: of 17,000 files most never are
	$(PIP) --no-compile --no-build-isolation -e '.[test]' $(patsubst %/pyproject.toml,-e ./%,$(PLUGINS))
	@# the panel is tried on ipykernel 6 too: its two packages in a folder for PYTHONPATH
	$(PIP) --no-compile --upgrade --no-deps --target $(VENV)/ipykernel6 'ipykernel>=6.29,<7' nest-asyncio
	@touch $@ $(VENV)/.lab

$(VENV)/.release: | $(BIN)/python
	$(BIN)/python -m pip install 'build>=1.2'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'kfac_lab needs Python 3.10 or newer, and "$(PYTHON)" is not: try `make PYTHON=python3.12 ...`.' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo '"$(PYTHON)" cannot make virtual environments: install its venv package (on Debian and Ubuntu: python3-venv).' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

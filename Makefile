# make motion       set up, render the embedded dataset, train ART on it, evaluate, write the report
# make test         set up, lint, check types, run all tests, compile a selection of kernels
# make test-fast    the inner loop: tests that are neither slow nor about the documentation
# make lint         formatting, lint, types, vocabulary
# make bench-smoke  a small benchmark regression suite, compared with the previous run
# make docs         build the documentation site: open build/site/index.html
# make kernels      compile every kernel for every target (about an hour on two cores)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= data/motion
RUN    ?= runs/motion
# The kernels that `make test` compiles: for a device with little shared memory and for AMD, and the largest for Hopper.
TARGETS ?= sm_89,gfx942
HOPPER  ?= \.bf16\.(c768|c1408)\.(m|j16|split\.plain)
KERNELS ?= combine\.bf16\.c1000|\.bf16\.(c256|c768|c1408)\.(m|j16|split\.plain)|\.(fp16|fp32)\.c1000\.(m.*(plain|all)|j16\.t16\.all)|contrast\.(terms|.*\.bf16\.c256\..*all)|nce\..*\.bf16\.c256\.all
# Let Python cache bytecode even if the environment disables it; pip's own compilation of every file takes a minute.
unexport PYTHONDONTWRITEBYTECODE
PIP    := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses auto --dist worksteal

BUILD_INPUTS := pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/*)

.PHONY: motion test test-fast lint bench-smoke docs kernels compare clean

motion: $(VENV)/.installed
	$(BIN)/art prepare motion --root $(DATA)
	$(BIN)/art train configs/motion.yaml data.root=$(DATA) output=$(RUN) --overwrite
	@echo "Open $(RUN)/report.html"

test: lint
	$(PYTEST) --durations=10
	$(BIN)/python -m art_kernels compile --targets $(TARGETS) --only '$(KERNELS)' --out build/kernels
	$(BIN)/python -m art_kernels compile --targets sm_90 --only '$(HOPPER)' --out build/kernels
	$(BIN)/python -m art_kernels compile --only tracklet_linking --out build/kernels

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not docs and not gpu"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/check_vocabulary.py

bench-smoke: $(VENV)/.installed-dev
	$(BIN)/python -m pytest benchmarks/test_smoke.py --benchmark-enable --benchmark-only --benchmark-storage=build/benchmarks --benchmark-autosave --benchmark-compare

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

kernels: $(VENV)/.installed-dev
	$(BIN)/python -m art_kernels compile --out build/kernels

compare: $(VENV)/.installed
	$(BIN)/art prepare motion --root $(DATA)
	$(BIN)/art compare configs/motion.yaml --seeds 3 data.root=$(DATA) output=runs/compare

# Both install into a virtual environment in $(VENV); nothing else on the machine changes.
$(VENV)/.installed: $(BUILD_INPUTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) ".[motion]"
	touch $@

$(VENV)/.installed-dev: $(BUILD_INPUTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[motion,clip,timm,transformers,lite,onnx,hub,serve,dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info

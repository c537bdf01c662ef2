# `make motion`: set up, prepare the embedded data set, train ART on it, evaluate, write the report.
# `make test`:   set up, lint, check types, run the tests; one of them builds the site, with warnings as errors.
# `make docs`:   build the documentation's site: open build/site/index.html.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATA   ?= data/motion
RUN    ?= runs/motion
# Kernels that `make test` compiles, and for what: a device with little shared memory and one of AMD's; and the largest
# of them for one with much. `make kernels` compiles all of them for all targets (an hour on two cores).
TARGETS ?= sm_89,gfx942
HOPPER  ?= \.bf16\.(c768|c1408)\.(m|j16|split\.plain)
KERNELS ?= combine\.bf16\.c1000|\.bf16\.(c256|c768|c1408)\.(m|j16|split\.plain)|\.(fp16|fp32)\.c1000\.(m.*(plain|all)|j16\.t16\.all)|contrast\.(terms|.*\.bf16\.c256\..*all)|nce\..*\.bf16\.c256\.all
# Python compiles what it imports, once, whatever the environment says; pip would compile all of it first, for a minute.
unexport PYTHONDONTWRITEBYTECODE
PIP    := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt

BUILT_FROM := pyproject.toml constraints.txt setup.py $(wildcard csrc/*)

.PHONY: motion test docs kernels lint compare clean

motion: $(VENV)/.installed
	$(BIN)/art prepare motion --root $(DATA)
	$(BIN)/art train configs/motion.yaml data.root=$(DATA) output=$(RUN) --overwrite
	@echo "Open $(RUN)/report.html"

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses auto --dist worksteal --durations=10
	$(BIN)/python -m art_kernels compile --targets $(TARGETS) --only '$(KERNELS)' --out build/kernels
	$(BIN)/python -m art_kernels compile --targets sm_90 --only '$(HOPPER)' --out build/kernels
	$(BIN)/python -m art_kernels compile --only tracklet_linking --out build/kernels

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

kernels: $(VENV)/.installed-dev
	$(BIN)/python -m art_kernels compile --out build/kernels

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compare: $(VENV)/.installed
	$(BIN)/art prepare motion --root $(DATA)
	$(BIN)/art compare configs/motion.yaml --seeds 3 data.root=$(DATA) output=runs/compare

# A virtual environment of the project's own: nothing else on the machine is touched.
$(VENV)/.installed: $(BUILT_FROM)
	$(PYTHON) -m venv $(VENV)
	$(PIP) ".[motion]"
	touch $@

$(VENV)/.installed-dev: $(BUILT_FROM)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[motion,clip,timm,transformers,onnx,hub,webdataset,serve,dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info

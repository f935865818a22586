# One command for each thing that people do here; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
MINDSPORE ?= .venv-mindspore
OLDEST ?= .venv-onnxruntime
TRACKERS ?= .venv-trackers
DEVICE ?= cpu
RUN ?= runs/quickstart
ARGS ?=
FULL ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MINDSPORE_INSTALLED := $(MINDSPORE)/.installed
MINDSPORE_PYTHON := $(abspath $(MINDSPORE)/bin/python)
OLDEST_INSTALLED := $(OLDEST)/.installed
OLDEST_PYTHON := $(abspath $(OLDEST)/bin/python)
TRACKERS_INSTALLED := $(TRACKERS)/.installed
TRACKERS_PYTHON := $(abspath $(TRACKERS)/bin/python)
# What MLflow's server needs besides mlflow-skinny, which holds its code: mlflow would bring 300 MB more.
MLFLOW_SERVER := alembic flask flask-cors graphene huey pandas sqlalchemy
# Two photographs that fine-tuning holds out, a defective cell and a functional one.
CELLS = $$($(BIN)/python -c "from elpv_dataset import __path__ as p; \
	print(*(p[0] + '/data/images/cell' + n + '.png' for n in ('0007', '0064')))")

.DEFAULT_GOAL := help
.PHONY: help install quickstart notebook test test-mindspore-full lint format docs verify benchmark study licences man clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 28

install: $(INSTALLED) ## make the virtual environment .venv with all that is needed

# Again only when what is to be installed has changed: the package itself is linked, not copied.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version), and the pinned packages need 3.11 or newer:" \
			"make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into $(VENV): about 6 GB, mostly torch; one to three minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
		-e '.[torch,export,serve,tasks,elpv,plots,notebook,lora,language,ray,s3,tables,web,docs,dev]'
	@touch $@

# Where ehm has MindSpore and no torch; MindSpore has no wheel for Python 3.13 and newer, where the folder stays empty.
# The pins are chosen as in docker/Dockerfile.mindspore.
$(MINDSPORE_INSTALLED): pyproject.toml constraints.txt docker/constraints.mindspore.txt | $(INSTALLED)
	@mkdir -p $(MINDSPORE)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))' || { \
		echo "Installing into $(MINDSPORE): about 3 GB, mostly MindSpore; one minute"; \
		awk -F== 'NR == FNR {own[$$1]; print; next} !($$1 in own)' docker/constraints.mindspore.txt constraints.txt \
			> $(MINDSPORE)/pins.txt && \
		$(BIN)/python -m venv $(MINDSPORE) && \
		$(MINDSPORE_PYTHON) -m pip install -qq --disable-pip-version-check -c $(MINDSPORE)/pins.txt \
			-e '.[mindspore,export,tasks,elpv]' hypothesis pytest pytest-timeout pytest-xdist; }
	@touch $@

# The oldest ONNX Runtime that pyproject.toml admits, which exported networks are tried with; 1.18 has no wheel for Python
# 3.13 and newer, where the folder stays empty.
$(OLDEST_INSTALLED): pyproject.toml | $(INSTALLED)
	@mkdir -p $(OLDEST)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))' || { \
		$(BIN)/python -m venv $(OLDEST) && \
		$(OLDEST_PYTHON) -m pip install -qq --disable-pip-version-check onnxruntime==1.18.0 numpy==1.26.4; }
	@touch $@

# The libraries of trackers, and MLflow's server, on top of what is in .venv: some want other versions of it.
$(TRACKERS_INSTALLED): pyproject.toml constraints.txt tests/constraints.trackers.txt | $(INSTALLED)
	@echo "Installing into $(TRACKERS): about 220 MB; half a minute"
	@mkdir -p $(TRACKERS)
	@awk -F== 'NR == FNR {own[$$1]; print; next} !($$1 in own)' tests/constraints.trackers.txt constraints.txt \
		> $(TRACKERS)/pins.txt
	@$(BIN)/python -m venv $(TRACKERS)
	@own=$$($(TRACKERS_PYTHON) -c 'import site; print(site.getsitepackages()[0])') && \
		$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
		> "$$own/beneath.pth"
	@$(TRACKERS_PYTHON) -m pip install -qq --disable-pip-version-check --no-compile -c $(TRACKERS)/pins.txt \
		mlflow-skinny swanlab wandb $(MLFLOW_SERVER)
	@touch $@

# Every step can be interrupted: the same command goes on where it stopped.
quickstart: $(INSTALLED) ## pretrain, fine-tune, export and classify on real images: at most 15 minutes on 2 cores
	$(BIN)/ehm train --config elpv/pretrain --device $(DEVICE) --out $(RUN)/pretrain --resume
	$(BIN)/ehm finetune --config elpv/finetune --set model.init=$(RUN)/pretrain --device $(DEVICE) --out $(RUN)/finetune --resume
	$(BIN)/ehm export $(RUN)/finetune --head multi --out $(RUN)/bundle
	@echo "$(BIN)/ehm predict $(RUN)/bundle (a defective and a functional cell, held out of fine-tuning)"
	@$(BIN)/ehm predict $(RUN)/bundle $(CELLS) --top 2
	$(BIN)/ehm compare $(RUN)/pretrain scratch --source elpv --set images=1600 --set repeats=1 --set scratch_seeds=1 --device $(DEVICE) --out $(RUN)/compare
	@for kind in hierarchy masks; do \
		$(BIN)/ehm inspect $$kind $(CELLS) --checkpoint $(RUN)/pretrain --device $(DEVICE) --out $(RUN)/pictures; done
	@echo
	@echo "Done. What there is now:"
	@echo "  $(RUN)/pretrain/pictures        what the model made of hidden patches, from early in its training to the end"
	@echo "  $(RUN)/pictures/masks.png       what pretraining hides, from its first epoch to its last"
	@echo "  $(RUN)/pictures/hierarchy.png   how the trained encoder divides the two cells into parts"
	@echo "  $(RUN)/pretrain                 the pretrained encoder"
	@echo "  $(RUN)/finetune                 the classifier"
	@echo "  $(RUN)/compare                  whether the pretrained encoder is better than random weights: table.md"
	@echo "  $(RUN)/bundle                   the classifier for ONNX Runtime; $(BIN)/ehm serve $(RUN)/bundle answers requests"
	@echo "Your own images: $(BIN)/ehm train --set data.source=FOLDER --out runs/mine"
	@echo "How it went, to open in a browser:"
	@echo "  $(abspath $(RUN))/pretrain/report.html"
	@echo "  $(abspath $(RUN))/finetune/report.html   with the cells that it takes for others"

# Every cell goes on where it stopped, as the steps of the quickstart do.
notebook: $(INSTALLED) ## run notebooks/quickstart.ipynb into notebooks/runs, with its pictures: about ten minutes on 2 cores
	@mkdir -p notebooks/runs
	$(BIN)/jupyter-execute notebooks/quickstart.ipynb --timeout=-1 --output=runs/quickstart \
		--NotebookClient.coalesce_streams=True
	@echo "Done: notebooks/runs/quickstart.ipynb, to open in Jupyter or in an editor"

# A process a core, one thread each; a file's tests stay together, as they share what they prepare. Files are taken in their
# order, by which those that take minutes come first: the last one would else keep one core busy and leave the others idle.
# Hypothesis takes the same examples every time (tests/conftest.py); with ARGS it looks for new ones.
PARALLEL := OMP_NUM_THREADS=1
WORKERS := -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder --hypothesis-profile repeatable -q
# Tests that share what MindSpore has compiled stay together, instead of those of a file.
GROUPS := $(subst loadfile,loadgroup,$(WORKERS))

# The tests ask EHM_MINDSPORE_PYTHON for what MindSpore is to do, and EHM_OLDEST_ONNXRUNTIME_PYTHON to run networks.
test: lint $(MINDSPORE_INSTALLED) $(OLDEST_INSTALLED) $(TRACKERS_INSTALLED) ## all checks: lint, pytest, a simulated NPU, MindSpore (ARGS="-k name": some tests)
	@if [ -x $(MINDSPORE_PYTHON) ]; then export EHM_MINDSPORE_PYTHON=$(MINDSPORE_PYTHON); \
		else echo "MindSpore is left out: it has no wheel for $$($(BIN)/python --version), only for 3.12 and older"; fi; \
		export EHM_OLDEST_ONNXRUNTIME_PYTHON=$(OLDEST_PYTHON); \
		$(PARALLEL) $(BIN)/python -m pytest $(or $(ARGS),$(WORKERS) $(FULL))
ifeq ($(ARGS),)
	@PYTHONPATH=tests/simulated $(PARALLEL) $(BIN)/python -m pytest $(WORKERS) tests/conformance -k npu
	@[ ! -x $(MINDSPORE_PYTHON) ] || $(PARALLEL) $(MINDSPORE_PYTHON) -m pytest $(GROUPS) tests/conformance -k mindspore $(FULL)
	@$(PARALLEL) $(TRACKERS_PYTHON) -m pytest -q --hypothesis-profile repeatable tests/integration/test_tracker_libraries.py
endif

# Each graph takes seconds to compile, so that `make test` leaves out the tests that only changes of MindSpore's backend, of
# the protocol, of the models or of the suite need; .ci/run runs them after such a change, and at a release.
test-mindspore-full: $(MINDSPORE_INSTALLED) ## all conformance tests of MindSpore, some of which make test leaves out
	@$(PARALLEL) $(MINDSPORE_PYTHON) -m pytest $(GROUPS) tests/conformance -k mindspore --full
	@EHM_MINDSPORE_PYTHON=$(MINDSPORE_PYTHON) $(PARALLEL) $(BIN)/python -m pytest $(WORKERS) tests/conformance -k mindspore --full

lint: $(INSTALLED) ## ruff, mypy, and checks of Dockerfiles, shell scripts and what GitHub reads
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile.* docker/*.Dockerfile
	$(BIN)/shellcheck .ci/run .ci/choose-mindspore-suite docker/*.sh
	@check() { $(BIN)/check-jsonschema -q --builtin-schema "vendor.$$@"; } && \
		check github-workflows .github/workflows/*.yml && \
		check dependabot .github/dependabot.yml && \
		check github-issue-config .github/ISSUE_TEMPLATE/config.yml && \
		check github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml)) && \
		check citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet --strict-collection .github

format: $(INSTALLED) ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Material warns of plans for mkdocs 2 at every build; constraints.txt has mkdocs 1.
docs: $(INSTALLED) ## build the site from docs/ into build/site; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "To read it: $(BIN)/python -m http.server --directory build/site"

verify: $(INSTALLED) ## check a device and measure it: DEVICE=cuda (or npu ...), 15 minutes, with ARGS=--quick two
	$(BIN)/ehm verify --device $(DEVICE) --out runs/verify/$(DEVICE) $(ARGS)

benchmark: $(INSTALLED) $(MINDSPORE_INSTALLED) ## measure hierarchies, loading and steps against their peers: 45 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/hierarchy.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/pretrain_step.py
	$(BIN)/python benchmarks/busy_machine.py
	[ ! -x $(MINDSPORE_PYTHON) ] || $(BIN)/python benchmarks/two_frameworks.py steps

study: $(INSTALLED) ## compare maskings, and objectives, on a small budget: some four hours on 2 cores, resumable
	$(BIN)/ehm compare --train studies/elpv --device $(DEVICE) --out runs/study
	$(BIN)/ehm tokenizer train --config elpv/tokenizer --device $(DEVICE) --out runs/study_objectives/tokenizer --resume
	$(BIN)/ehm compare --train studies/elpv_objectives --device $(DEVICE) --out runs/study_objectives

# In a new environment, as pip 24 or newer is needed, whose dry run takes metadata and no packages.
licences: ## list the licences of all packages by extra in docs/licences.md
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(PYTHON) -m venv "$$folder" && \
		"$$folder/bin/python" -m pip install -qq --upgrade pip packaging && "$$folder/bin/python" benchmarks/licences.py

man: $(INSTALLED) ## write the manual pages into build/man: man -M build/man ehm
	$(BIN)/ehm man build/man

clean: ## remove caches, builds and the quickstart's results; other runs and .venv stay
	rm -rf build dist ehm.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(RUN) notebooks/runs
	find ehm backends deploy tests benchmarks -name __pycache__ -type d -exec rm -rf {} +

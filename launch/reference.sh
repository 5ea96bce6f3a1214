#!/usr/bin/env bash
# The API reference, from the docstrings: bash launch/reference.sh OUT [MODULE …], then open OUT/index.html.
# Needs the extra `dev`. Without modules it is of the whole package, which takes half a minute.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:?name a folder: bash launch/reference.sh OUT}
shift
if [ $# -eq 0 ]; then  # pdoc leaves out what is not in a package's __all__: those modules are named besides
  set -- anygpt_jax data_pipelines '!anygpt_jax.shipped.__main__' \
    $(cd "$root" && ls anygpt_jax/tasks/metrics/[a-z]*.py | sed 's,[.]py$,,; s,/,.,g')
fi
python=$root/.venv/bin/python
[ -x "$python" ] || python=python
# pdoc reads jaxtyping's shapes ("B S") as expressions and says that it cannot; it shows them as they are written.
export PYTHONWARNINGS="ignore:Error parsing type annotation:UserWarning${PYTHONWARNINGS:+,$PYTHONWARNINGS}"
export PDOC_ALLOW_EXEC=1 TF_CPP_MIN_LOG_LEVEL=3 JAX_PLATFORMS=cpu
exec "$python" -m pdoc --output-directory "$out" --no-show-source "$@"

#!/usr/bin/env bash
# Sets everything up and runs the main job end to end on the embedded data set:
# build-data, tokenize, train, evaluate, generate, report. Run it again to resume.
#   bash launch/quickstart.sh [--workdir DIR] [--config FILE] [--config.key=value …]
. "$(dirname "$0")/environment.sh"
started=$(date +%s)
ensure_environment
exec .venv/bin/python launch/stages.py --setup-seconds $(($(date +%s) - started)) "$@"

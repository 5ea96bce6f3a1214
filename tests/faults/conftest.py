"""The faults' tests share what lies in tests/."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

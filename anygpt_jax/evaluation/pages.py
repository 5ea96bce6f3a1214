"""The templates of the report's pages, in this package."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from typing import Any

import jinja2


def environment(**filters: Callable[..., Any]) -> jinja2.Environment:
    """Everything that a template inserts is escaped."""
    files = importlib.resources.files("anygpt_jax.evaluation")
    made = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text("utf-8")),
    )
    made.filters |= filters
    return made

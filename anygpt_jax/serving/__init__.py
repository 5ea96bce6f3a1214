"""`anygpt serve`: the model behind HTTP, in the shape that clients of chat completions speak, and a page to talk with it."""

import importlib.util

from anygpt_jax.errors import UserError

for _name in ("prometheus_client", "pydantic", "starlette", "uvicorn"):
    if importlib.util.find_spec(_name) is None:
        raise UserError(f"Serving needs the package {_name}; install it with `pip install 'anygpt-jax[serve]'`.")

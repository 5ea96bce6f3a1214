"""What an earlier run left in the cache: what of it is finished, what must not be mixed in, what is swept away."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator, Mapping

from anygpt_jax.cache import Manifest, Shard, finished_shard, read_entry
from anygpt_jax.errors import UserError
from anygpt_jax.tasks.recipe import changed_parts
from anygpt_jax.tasks.shards import Plan
from anygpt_jax.vocabulary import Vocabulary

OTHER_FOLDER = "name another --workdir, or delete that folder to tokenize again"
WORDS = {
    "task": "another definition of the task (its steps, rules, instructions or templates)",
    "limit": "another tokenize.max_tokens",
    "data": "other data",
    "format": "another version of this program",
}


@contextlib.contextmanager
def locked(cache: pathlib.Path) -> Iterator[None]:
    """One job at a time in a cache. The lock is the folder's own and ends with the process, however it ends."""
    cache.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"Another `anygpt tokenize` is writing {cache}; wait for it, or stop it.") from e
            # Some network file systems have no locks; writing is atomic there all the same.
        yield
    finally:
        os.close(descriptor)


def require_same_tokenizers(cache: pathlib.Path, vocabulary: Vocabulary, fingerprints: Mapping[str, str]) -> None:
    """A cache is of one vocabulary and one set of codecs; a checkpoint may already depend on them.

    Where these files are absent or damaged, the shards' recipes speak for themselves (`require_same_recipes`).
    """
    made_with: Vocabulary | None = None
    with contextlib.suppress(UserError):
        made_with = Vocabulary.load(cache / "vocabulary.json")
    if made_with is not None and made_with.fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"{cache} was made with vocabulary {made_with.fingerprint[:12]}, but this config and its tokenizers "
            f"give {vocabulary.fingerprint[:12]}; {OTHER_FOLDER}."
        )
    made_by: Mapping[str, str] = {}
    with contextlib.suppress(UserError):
        made_by = Manifest.load(cache).tokenizers
    changed = [name for name in made_by if made_by[name] != fingerprints.get(name)]
    if changed:
        raise UserError(f"{cache} was made by other weights of the {', '.join(changed)} tokenizer; {OTHER_FOLDER}.")


def _entries(cache: pathlib.Path, plan: Plan) -> dict[str, Shard]:
    """Stem -> entry of every shard that is in the folders of the plan, planned or not."""
    found = {}
    for folder in sorted({(cache / shard.stem).parent for _, shard in plan.shards()}):
        for path in folder.glob("*.json") if folder.is_dir() else ():
            stem = str(path.relative_to(cache).with_suffix(""))
            entry = read_entry(cache, stem)
            if entry is not None:
                found[stem] = entry
    return found


def require_same_recipes(cache: pathlib.Path, plan: Plan, remake: bool) -> None:
    """Shards made by other tokenizers are never replaced; by another definition of their task, only if `remake`.

    Says which shards will be made again, and why. Shards of other data are: their source has changed.
    """
    wanted = {f"{shard.task}/{work.split}": shard.recipe for work, shard in plan.shards()}
    stale: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for stem, entry in _entries(cache, plan).items():
        where = stem.rpartition("/")[0]
        changed = changed_parts(entry.recipe, wanted[where])
        if "tokenizers" in changed:
            raise UserError(f"{cache / stem} was made by other tokenizers or another vocabulary; {OTHER_FOLDER}.")
        decided = [part for part in changed if part in ("task", "limit")]
        if decided and not remake:
            raise UserError(
                f"{cache / stem} was made by {' and '.join(WORDS[part] for part in decided)}; name another --workdir "
                f"for a new version of the cache, or pass --remake to make the shards of {where} again."
            )
        # A shard of one source file has its own hash of the data: only those of whole splits can be compared here.
        stale[where].update(part for part in changed if part != "data" or "-of-" in stem)
    for where, parts in stale.items():
        for part, count in parts.items():
            print(f"{where}: {count} shards are made again: they are of {WORDS[part]}")


def unfinished(cache: pathlib.Path, plan: Plan) -> Plan:
    """What is still to do. Entries of damaged shards and of other recipes are taken away."""
    works = []
    for work in plan.works:
        todo = tuple(s for s in work.shards if finished_shard(cache, s.stem, s.recipe) is None)
        for shard in todo:
            (cache / f"{shard.stem}.json").unlink(missing_ok=True)
        if todo:
            works.append(dataclasses.replace(work, shards=todo))
    return Plan(tuple(works))


def sweep(cache: pathlib.Path, plan: Plan) -> None:
    """Removes what killed runs left half-written, and in the plan's folders shards that it does not name."""
    for path in cache.rglob("*.tmp-*"):
        path.unlink(missing_ok=True)
    planned = {shard.stem for _, shard in plan.shards()}
    for folder in {(cache / stem).parent for stem in planned}:
        for path in folder.glob("*") if folder.is_dir() else ():
            if str(path.relative_to(cache)).split(".")[0] not in planned:
                path.unlink()

"""Checkpoints: Orbax, asynchronous, checked by their checksums, with config, vocabulary and progress inside.

checkpoints/STEP/params           what generation needs
checkpoints/STEP/NAME             every other part of the training state: optimizer, ema, guard …; converted weights
                                  (`anygpt convert`) have none
checkpoints/STEP/config           the run's config, JSON
checkpoints/STEP/vocabulary       vocabulary.json's fields
checkpoints/STEP/progress         what the host itself must remember, JSON
checkpoints/STEP/metrics          what it was judged by when it was saved, JSON
checkpoints/STEP/checksums.json   of all these files, from before the checkpoint became final

In a job of several processes every method here is called by all of them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from anygpt_jax import multihost
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import param_shardings
from anygpt_jax.training import checksums, folders, mirror
from anygpt_jax.training.agreement import as_first_says, by_first, from_all
from anygpt_jax.training.full_disk import explained
from anygpt_jax.training.retention import CheckpointSettings
from anygpt_jax.vocabulary import Vocabulary

State = dict[str, Any]

log = logging.getLogger(__name__)

ALL = "*"
DESCRIBING = ("config", "vocabulary", "progress", "metrics")  # items that are no part of the training state


@dataclasses.dataclass(frozen=True)
class Description:
    """What a checkpoint says about itself."""

    config: dict[str, Any]
    vocabulary: Vocabulary
    progress: dict[str, Any]  # {} of a checkpoint that has none
    metrics: dict[str, float]  # likewise


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A decoder with trained weights, and what its ids mean."""

    decoder: Decoder
    config: ModelConfig
    vocabulary: Vocabulary
    step: int


class Checkpoints:
    """The checkpoints of one run. `save` returns at once; `close` waits until all is written.

    `read_only` is for whoever looks on, also while a run is writing: nothing is made, cleaned or renamed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        settings: CheckpointSettings | None = None,
        *,
        read_only: bool = False,
    ):
        self.directory = folders.absolute(directory)
        self.settings = settings or CheckpointSettings()
        self.read_only = read_only
        self._saving: int | None = None
        self._verified: set[tuple[epath.Path, str]] = set()  # (checkpoint, item); ALL for whatever is inside
        self._damaged: set[epath.Path] = set()  # known to be, and still in their places
        keep = self.settings.keep
        # Orbax's own barrier of the thread that saves: a process's files are written when it comes there.
        self._barrier = ocp.multihost.get_barrier_sync_fn()
        if not read_only:  # Orbax would do it in a thread, and another one that opens the folder meanwhile would fail
            by_first(functools.partial(folders.clean, self.directory))
        with explained(self.directory):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    create=not read_only,
                    save_root_metadata=False,
                    preservation_policy=keep.policy(),
                    best_fn=lambda metrics: metrics[keep.metric],  # without one Orbax writes no metrics
                    best_mode="min",
                    enable_async_checkpointing=True,
                    async_options=ocp.AsyncOptions(
                        barrier_sync_fn=self._at_barrier, post_finalization_callback=self._before_final
                    ),
                ),
            )
        self._mirror = folders.absolute(self.settings.mirror) if self.settings.mirror else None
        self._copying: concurrent.futures.ThreadPoolExecutor | None = None
        if self._mirror is not None and not read_only and multihost.leads():
            self._copying = concurrent.futures.ThreadPoolExecutor(1, "checkpoint_mirror")
            self._copying.submit(folders.clean, self._mirror)
            if steps := folders.final_steps(self.directory):  # what a run that was killed did not come to copy
                self._copying.submit(self._bring, steps[-1])

    # Saving

    def save(
        self,
        step: int,
        state: State,
        config: ml_collections.ConfigDict,
        vocabulary: Vocabulary,
        progress: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Takes a copy of the state and writes it while training goes on. What is there already stays as it is.

        UserError if the disk was full for the checkpoint before this one; what else went wrong with it is raised too.
        """
        if self.read_only:
            raise ValueError(f"{self.directory} was opened to be read")
        self._wait_for_save()
        # Process 0's answer: file systems do not show all hosts the same at once.
        if as_first_says([(step, 0)] if step in self._manager.all_steps() else []):
            return
        self._saving = step
        items = {name: ocp.args.StandardSave(part) for name, part in state.items()}
        described = {
            "config": json.loads(config.to_json_best_effort()),
            "vocabulary": json.loads(vocabulary.to_json()),
            "progress": dict(progress or {}),
        }
        with explained(self.directory, step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **items, **{name: ocp.args.JsonSave(content) for name, content in described.items()}
                ),
                metrics=self.settings.keep.metrics(metrics),
                custom_metadata={"checksums": True},
                force=True,  # Orbax would refuse a step that is not newer than the newest
            )
        if self._copying:
            self._copying.submit(self._bring, step)

    def _at_barrier(self, *, key: str, timeout_ms: int) -> None:
        if "async_write_complete" in key:
            checksums.write_own(self._written_to(), jax.process_index())
        self._barrier(key=key, timeout_ms=timeout_ms)

    def _before_final(self) -> None:
        written = self._written_to()
        checksums.wait_for_metadata(written)
        checksums.write(written)

    def _written_to(self) -> epath.Path:
        return folders.temporary(self.directory / str(self._saving)).get()

    def _bring(self, step: int) -> None:
        """Copies a checkpoint to the mirror, in a thread of its own, as soon as it is final."""
        assert self._mirror is not None
        with contextlib.suppress(Exception):  # the main thread hears of it
            self._manager.wait_until_finished()
        try:
            mirror.bring(step, self.directory, self._mirror, self.settings.mirror_keep)
        except Exception:  # nobody looks at what this thread returns
            log.exception("Checkpoint %d was not copied to %s.", step, self._mirror)

    def _wait_for_save(self) -> None:
        try:
            with explained(self.directory, self._saving):
                self._manager.wait_until_finished()
        except Exception:
            self._manager.reload()
            raise

    def wait(self) -> None:
        """Until the checkpoint that is being written is final; raises what went wrong with it."""
        self._wait_for_save()

    def close(self) -> None:
        """Waits for the last checkpoint, and for its copy on the mirror."""
        try:
            self._wait_for_save()
        finally:
            if self._copying:
                self._copying.shutdown()
            self._manager.close()

    def leave(self, step: int) -> None:
        """Sets aside what is newer than `step`, here and in the mirror: the run has gone back, and on in another way."""
        self.wait()
        if self._copying:
            self._copying.submit(lambda: None).result()  # after what is being copied
        for newer, path in self._listed():
            if newer > step:
                log.warning("Checkpoint %s is set aside as .left: the run goes on from step %d.", path, step)
                by_first(functools.partial(folders.set_aside, path, folders.LEFT))
        self._manager.reload()

    # What is there

    def _places(self) -> list[epath.Path]:
        return [self.directory, *([self._mirror] if self._mirror is not None else [])]

    def _listed(self) -> list[tuple[int, epath.Path]]:
        """Final checkpoints, the newest first; of two of the same step, the mirror's comes second. As process 0 sees it."""
        places = self._places()
        found = [(step, i) for i, place in enumerate(places) for step in folders.final_steps(place)]
        found.sort(key=lambda one: (-one[0], one[1]))
        listed = [(step, places[i] / str(step)) for step, i in as_first_says(found)]
        return [(step, path) for step, path in listed if path not in self._damaged]

    def latest(self) -> int | None:
        """The newest final checkpoint's step; one that was cut off while being written does not count."""
        found = self._listed()
        return found[0][0] if found else None

    def newest_whole(self, items: Collection[str] | None = None) -> int | None:
        """The newest checkpoint whose bytes are those that were written, here or in the mirror; None if there is none.

        Damaged ones on the way are set aside as STEP.damaged (not by a reader), with a warning each. `items` names those
        that are read, None all. With `settings.verify` off this is `latest`.
        """
        for step, path in self._listed():
            found = self._problems(path, items) if self.settings.verify else []
            if not found:
                return step
            if self.read_only:
                self._damaged.add(path)
                done = "It is left out."
            else:
                done = "It is set aside beside the others, with .damaged to its name; nothing of it is deleted."
                by_first(functools.partial(folders.set_aside, path))
                self._manager.reload()
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            log.warning("Checkpoint %s is damaged: %s%s. %s", path, "; ".join(found[:3]), more, done)
        return None

    def _problems(self, path: epath.Path, items: Collection[str] | None) -> list[str]:
        """What is wrong with a checkpoint; the processes share the reading and all get the same answer."""
        wanted = {ALL} if items is None else {*items, *DESCRIBING}
        unread = {name for name in wanted if not self._verified & {(path, name), (path, ALL)}}
        if not unread:
            return []
        share = (jax.process_index(), jax.process_count())
        found = from_all(list(checksums.problems(path, None if ALL in unread else unread, share)))
        if not found:
            self._verified |= {(path, name) for name in unread}
        return found

    def _items(self, path: epath.Path) -> list[str]:
        """Of the folder alone: what the checksums say is missing is found by `_problems`."""
        return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("_"))

    def holds(self, step: int) -> bool:
        """Whether there is a final checkpoint of this step."""
        return any(listed == step for listed, _ in self._listed())

    def _path(self, step: int) -> epath.Path:
        """Where a step is: here, or in the mirror. UserError if it is nowhere."""
        for listed, path in self._listed():
            if listed == step:
                return path
        raise UserError(f"{self.directory} holds no whole checkpoint of step {step}.")

    def require_whole(self, step: int, items: Collection[str], *, verify: bool = True) -> None:
        """UserError if one of these items is missing or, unless verifying is off here or in the settings, damaged."""
        path = self._path(step)
        if missing := sorted(set(items) - set(self._items(path))):
            raise UserError(
                f"The checkpoint {path} has no {', '.join(missing)}; it has {', '.join(self._items(path))}."
            )
        damaged = self._problems(path, items) if verify and self.settings.verify else []
        if damaged:
            raise UserError(f"The checkpoint {path} is damaged: {'; '.join(damaged[:3])}; go on from another one.")

    def items(self, step: int) -> list[str]:
        """The names of what is inside, the state's parts and what describes it."""
        return self._items(self._path(step))

    def has_optimizer(self, step: int) -> bool:
        """False for converted weights: training from them begins with a fresh optimizer."""
        return "optimizer" in self.items(step)

    def description(self, step: int) -> Description:
        """What a checkpoint says about itself."""
        path = self._path(step)
        names = [name for name in DESCRIBING if name in self._items(path)]
        read = self._manager.restore(
            step,
            directory=path.parent,
            args=ocp.args.Composite(**{name: ocp.args.JsonRestore() for name in names if name != "metrics"}),
        )
        vocabulary = Vocabulary.from_json(json.dumps(read["vocabulary"]))
        progress = read["progress"] if "progress" in names else {}
        return Description(read["config"], vocabulary, progress or {}, mirror.metrics_of(path) or {})

    def restore(self, step: int, abstract: State, *, verify: bool = True) -> State:
        """The state, laid out as `abstract` (ShapeDtypeStructs with shardings) says: any mesh will do.

        Only the parts that `abstract` names are read. UserError if one is missing, or damaged unless `verify` is off;
        what `newest_whole` has read is not read again.
        """
        path = self._path(step)
        self.require_whole(step, list(abstract), verify=verify)
        wanted = {name: ocp.args.StandardRestore(part) for name, part in abstract.items()}
        read = self._manager.restore(step, directory=path.parent, args=ocp.args.Composite(**wanted))
        return {name: read[name] for name in abstract}


def restore_model(
    path: str | os.PathLike[str],
    *,
    ema: bool = False,
    step: int | None = None,
    verify: bool = True,
    mesh: Mesh | None = None,
) -> LoadedModel:
    """A checkpoint under `path` (WORKDIR/checkpoints), the newest whole one unless `step` is named.

    It lies on one device, or as the sharding rules say on a mesh. `ema` takes the average of the weights in the place of the last ones. UserError if there is none of either.
    """
    if not folders.absolute(path).is_dir():
        raise UserError(f"No checkpoints at {path}; run `anygpt train` first or name another workdir.")
    item = "ema" if ema else "params"
    checkpoints = Checkpoints(path, CheckpointSettings(verify=verify), read_only=True)
    try:
        step = checkpoints.newest_whole([item]) if step is None else step
        if step is None:
            raise UserError(f"{path} holds no whole checkpoint; run `anygpt train` first or name another workdir.")
        about = checkpoints.description(step)
        if ema and "ema" not in checkpoints.items(step):
            raise UserError(f"Checkpoint {step} in {path} has no average of the weights: it was trained without EMA.")
        model = ModelConfig.from_config(about.config["model"], about.vocabulary)
        graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param)
        shapes = nnx.to_pure_dict(abstract)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: here, shapes) if mesh is None else param_shardings(abstract, mesh)
        wanted = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, places
        )
        params = checkpoints.restore(step, {item: wanted})[item]
    finally:
        checkpoints.close()
    return LoadedModel(nnx.merge(graph, params), model, about.vocabulary, step)

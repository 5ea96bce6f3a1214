"""What became of every input: the final table of `anygpt tokenize`, and when too many rejects stop the job."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from anygpt_jax.cache import Ledger, Manifest, reasons_by_count
from anygpt_jax.errors import UserError

LEAST_INPUTS = 300  # of a task's split, before a share of rejects says anything
MAX_REJECT_SHARE = 0.1  # where config.tokenize.max_reject_share is not set
SHOWN_REASONS = 5


def max_reject_share(config: ml_collections.ConfigDict) -> float:
    """From 0 to 1, of a split's inputs; MAX_REJECT_SHARE where the config says nothing."""
    return float(config.tokenize.get("max_reject_share", MAX_REJECT_SHARE))


def too_many(inputs: int, rejects: int, most: float) -> bool:
    """Whether rejects are more than `most` of the inputs, of which there must be LEAST_INPUTS to say so."""
    return inputs >= LEAST_INPUTS and rejects > most * inputs


def stopped(source: str, inputs: int, rejected: Mapping[str, int], most: float) -> UserError:
    """The error that stops the job; `rejected` counts kinds of reasons, the most frequent first."""
    top = "; ".join(f"{count} × {reason}" for reason, count in list(rejected.items())[:SHOWN_REASONS])
    return UserError(
        f"{sum(rejected.values())} of {inputs} inputs of {source} were rejected, more than "
        f"tokenize.max_reject_share={most:g}: {top}. Mend the data, or allow a larger share."
    )


@dataclasses.dataclass
class Tally:
    """Inputs and rejects of one task's split, as one process sees them: its shards may be small, but there are many."""

    source: str
    inputs: int = 0
    rejected: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)  # by kind of reason

    def add(self, ledger: Ledger) -> None:
        """Counts a shard, which must come once; its reasons are counted by kind."""
        self.inputs += ledger.inputs
        self.rejected.update(reasons_by_count(reason for _, reason in ledger.rejects))

    def check(self, ledger: Ledger, most: float) -> None:
        """Raises UserError if with `ledger`, the shard at hand, too many are rejected."""
        if not too_many(self.inputs + ledger.inputs, self.rejected.total() + len(ledger.rejects), most):
            return
        self.add(ledger)
        error = stopped(self.source, self.inputs, dict(self.rejected.most_common()), most)
        self.inputs, self.rejected = 0, collections.Counter()  # mended data may be read by the same process
        raise error


def require_few_rejects(manifest: Manifest, most: float) -> None:
    """Raises UserError if too many inputs of a split were rejected, or all that were not filtered of a task."""
    for task, splits in manifest.tasks.items():
        counted = {split: manifest.counts(task, split) for split in splits}
        for split, counts in counted.items():
            if too_many(counts.inputs, counts.rejects, most):
                raise stopped(f"{task}/{split}", counts.inputs, counts.rejected, most)
        rejects = sum(counts.rejects for counts in counted.values())
        if rejects and not any(counts.records for counts in counted.values()):
            reason = next(reason for counts in counted.values() for reason in counts.rejected)
            raise UserError(
                f"All {rejects} examples of {task} were rejected, for instance because {reason}; "
                "mend the data, or take the task out of config.tokenize.tasks."
            )


def summary(manifest: Manifest) -> dict[str, dict[str, dict[str, Any]]]:
    """task -> split -> inputs, records, tokens, rejects, and the counts by rule and by kind of reason."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task, splits in manifest.tasks.items():
        found[task] = {}
        for split in splits:
            found[task][split] = manifest.counts(task, split).to_json()
    return found


COLUMNS = ("inputs", "records", "filtered", "rejects", "tokens")


def table(counted: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Inputs are records, filtered and rejects; under a row, the rules and the most frequent reasons."""
    lines = [f"{'task':<18}{'split':<16}" + "".join(f"{name:>12}" for name in COLUMNS)]
    total = collections.Counter[str]()
    for task, splits in counted.items():
        for split, counts in splits.items():
            row = {**{name: counts[name] for name in COLUMNS}, "filtered": sum(counts["filtered"].values())}
            total.update(row)
            lines.append(f"{task:<18}{split:<16}" + _numbers(row))
            lines += [f"    filtered {times:,}: {rule}" for rule, times in counts["filtered"].items()]
            shown = list(counts["rejected"].items())[:SHOWN_REASONS]
            lines += [f"    rejected {times:,}: {reason}" for reason, times in shown]
    lines.append(f"{'in all':<34}" + _numbers(total))
    return "\n".join(lines)


def _numbers(row: Mapping[str, int]) -> str:
    return "".join(f"{row[name]:>12,}" for name in COLUMNS)

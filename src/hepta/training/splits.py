"""Labelled texts without duplicates, split so that no twin of a held-out text is ever trained on."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from hepta.config import HeptaError
from hepta.console import say, warn
from hepta.corpus.config import DedupConfig
from hepta.corpus.duplicates import find_edges
from hepta.corpus.shingles import shingle
from hepta.data.files import EXAMPLE_ROWS, Policy
from hepta.data.tables import Labelled, bare

SHARES = {"test": 0.1, "val": 0.1}  # the rest is train
SPLITS = ("train", "val", "test")
TWINS = DedupConfig(threshold=0.6, bands=32, rows=4)  # far below what a corpus drops: nothing is lost by caution
LARGEST_GROUP = 20  # distinct texts; larger groups come from a template and stay in train
FEW = 100  # test rows below which a score says little


@dataclass(frozen=True)
class Splits:
    """Texts to train on, to choose the best step by, and to be judged by."""

    train: list[Labelled]
    val: list[Labelled]
    test: list[Labelled]
    report: dict[str, Any] = field(default_factory=dict)


def duplicate_key(text: str) -> str:
    """What two texts are the same by: NFKC, case folded, no punctuation (unless it is all there is), no space."""
    return bare(unicodedata.normalize("NFKC", text).casefold())


def make_splits(
    examples: Sequence[Labelled], test: Sequence[Labelled] | None = None, policy: Policy = "drop", classes: bool = True
) -> Splits:
    """Merge duplicates, drop contradictions, and split 0.8 / 0.1 / 0.1 by a hash of each group of near-twins.

    The hash knows the text only, so the order of rows does not matter, and more rows move next to none.

    Args:
        examples: as read.
        test: a test file of the user's own, taken as it is; its twins leave the training data.
        policy: what a class with a single text is: a row to ``drop`` or an ``error``.
        classes: labels are classes, each wanted in each split.

    Raises:
        HeptaError: a class seen once under ``error``, fewer than two classes, too few rows to hold any out.
    """
    report: dict[str, Any] = {"rows": len(examples)}
    kept = _without_singles(_merge(examples, report), report, policy) if classes else _merge(examples, report)
    if classes and len({e.label for e in kept}) < 2:
        raise HeptaError(
            f"the label column holds {len({e.label for e in kept})} class of two texts or more; two are needed"
        )
    if len(kept) < 4:
        raise HeptaError(f"{len(kept)} different texts are left; too few to train on some and test on others")
    everything = [*kept, *(test or [])]
    groups = _groups(everything)
    if test is not None:
        held = set(groups[len(kept) :]) | {duplicate_key(e.text) for e in test}
        clean = [i for i, e in enumerate(kept) if groups[i] not in held and duplicate_key(e.text) not in held]
        report["twins of test rows, removed"] = len(kept) - len(clean)
        kept, groups = [kept[i] for i in clean], [groups[i] for i in clean]
        test = _known_classes(test, {e.label for e in kept}, report) if classes else list(test)
    places = _assign(kept, groups, ("val",) if test is not None else ("test", "val"), report)
    if classes:
        _mend(kept, groups, places, ("val",) if test is not None else ("test", "val"))
    parts = {split: [e for e, place in zip(kept, places, strict=True) if place == split] for split in SPLITS}
    if test is not None:
        parts["test"] = list(test)
    _check(parts, report, classes)
    return Splits(parts["train"], parts["val"], parts["test"], report)


def _merge(examples: Sequence[Labelled], report: dict[str, Any]) -> list[Labelled]:
    """One of each set of duplicates, none where their labels contradict each other."""
    same: dict[str, list[Labelled]] = defaultdict(list)
    for example in examples:
        same[duplicate_key(example.text)].append(example)
    conflicts = [group for group in same.values() if len({e.label for e in group}) > 1]
    kept = [group[0] for group in same.values() if len({e.label for e in group}) == 1]
    lost = sum(map(len, conflicts))
    report["duplicates merged"] = len(examples) - lost - len(kept)
    report["conflicting duplicates dropped"] = lost
    report["conflict examples"] = [
        f"{a.name} ({a.label}) and {b.name} ({b.label}): {a.text[:60]}"
        for a, b in ((g[0], next(e for e in g if e.label != g[0].label)) for g in conflicts[:EXAMPLE_ROWS])
    ]
    if lost:
        warn(f"dropped {lost} rows whose text stands elsewhere with another label: {report['conflict examples'][0]}")
    return kept


def _without_singles(examples: list[Labelled], report: dict[str, Any], policy: Policy) -> list[Labelled]:
    """Texts of classes that have two or more: one text cannot be both learnt from and tested on."""
    counts = Counter(e.label for e in examples)
    single = [e for e in examples if counts[e.label] == 1]
    names = [f"{e.name} ({e.label})" for e in single]
    report["classes seen once, dropped"] = names
    if single and policy == "error":
        raise HeptaError(
            f"class {single[0].label!r} has one text only ({single[0].name}); add more or set bad_rows=drop"
        )
    if single:
        warn(f"dropped {len(single)} classes with one text only: {', '.join(names[:EXAMPLE_ROWS])}")
    return [e for e in examples if counts[e.label] > 1]


def _known_classes(test: Sequence[Labelled], known: set[Any], report: dict[str, Any]) -> list[Labelled]:
    strange = [e for e in test if e.label not in known]
    report["test rows of classes not in training, dropped"] = [f"{e.name} ({e.label})" for e in strange[:EXAMPLE_ROWS]]
    if strange:
        named = f"{strange[0].name} ({strange[0].label})"
        warn(f"dropped {len(strange)} of {len(test)} test rows: their classes have no training rows, first {named}")
    return [e for e in test if e.label in known]


def _groups(examples: Sequence[Labelled]) -> list[str]:
    """The name of each text's group of near-twins: the smallest hash of a key in it."""
    texts = [e.text for e in examples]
    rows = np.arange(len(texts))
    edges = find_edges(
        shingle(texts).signatures(), rows, rows, TWINS, lambda wanted: [texts[i] for i in wanted.tolist()]
    )
    leader = list(range(len(texts)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = i = leader[leader[i]]
        return i

    for a, b, value in zip(edges.a.tolist(), edges.b.tolist(), edges.jaccard.tolist(), strict=True):
        if value >= TWINS.threshold:
            leader[find(a)] = find(b)
    names: dict[int, str] = {}
    for i, text in enumerate(texts):
        name = xxhash.xxh3_64_hexdigest(b"split:" + duplicate_key(text).encode("utf-8", "replace"))
        root = find(i)
        names[root] = min(names.get(root, name), name)
    return [names[find(i)] for i in range(len(texts))]


def _assign(kept: list[Labelled], groups: list[str], held_out: Iterable[str], report: dict[str, Any]) -> list[str]:
    """The split of each text, by the hash that names its group."""
    sizes = Counter(groups)
    report["near-twins kept together"] = sum(size for size in sizes.values() if size > 1)
    large = {name for name, size in sizes.items() if size > LARGEST_GROUP}
    report["texts of large groups, all in train"] = sum(sizes[name] for name in large)
    places = []
    for name in groups:
        place, edge, chosen = int(name, 16) / 2**64, 0.0, "train"
        for split in held_out:
            if edge <= place < edge + SHARES[split] and name not in large:
                chosen = split
            edge += SHARES[split]
        places.append(chosen)
    return places


def _mend(kept: list[Labelled], groups: list[str], places: list[str], held_out: Iterable[str]) -> None:
    """Give each class a group in train first, then in each held-out split, as far as its groups reach."""
    own: dict[Any, set[str]] = defaultdict(set)
    members: dict[str, list[int]] = defaultdict(list)
    for i, (example, name) in enumerate(zip(kept, groups, strict=True)):
        own[example.label].add(name)
        members[name].append(i)

    def pure(name: str) -> bool:  # moving it takes nothing from another class
        return len(members[name]) <= LARGEST_GROUP and len({kept[i].label for i in members[name]}) == 1

    for label in sorted(own, key=str):
        names = sorted(own[label])

        def in_split(split: str, names: list[str] = names) -> list[str]:
            return [name for name in names if places[members[name][0]] == split]

        wanted = ["train", *held_out]  # the most needed first
        for rank, split in enumerate(wanted):
            spare = [s for s in wanted if len(in_split(s)) > 1 or s in wanted[rank + 1 :]]
            movable = [
                name for s in sorted(spare, key=lambda s: -len(in_split(s))) for name in in_split(s) if pure(name)
            ]
            if not in_split(split) and movable:
                for i in members[movable[0]]:
                    places[i] = split


def _check(parts: dict[str, list[Labelled]], report: dict[str, Any], classes: bool) -> None:
    report["splits"] = {name: len(part) for name, part in parts.items()}
    say("rows: " + ", ".join(f"{len(part):,} {name}" for name, part in parts.items()))
    for name, part in parts.items():
        if not part:
            raise HeptaError(f"split {name!r} is empty: too few different texts; give more rows or test_data=FILE")
    if classes:
        report["classes"] = {name: dict(Counter(str(e.label) for e in part)) for name, part in parts.items()}
        every = {str(e.label) for part in parts.values() for e in part}
        missing = {name: sorted(every - set(report["classes"][name])) for name in SPLITS}
        report["classes missing"] = {name: some for name, some in missing.items() if some}
        for name, some in report["classes missing"].items():
            warn(f"split {name!r} holds no text of {', '.join(some[:EXAMPLE_ROWS])}: too few of them to go round")
    if len(parts["test"]) < FEW:
        warn(f"the test split has {len(parts['test'])} rows: its scores are rough (their intervals say how rough)")

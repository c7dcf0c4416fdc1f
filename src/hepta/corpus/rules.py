"""The quality rules: each compares one measured signal with a threshold of the document's language."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hepta.corpus.config import RulesConfig

STAGE = "rules"


@dataclass(frozen=True)
class Rule:
    """``min_x`` keeps signal ≥ threshold, ``max_x`` keeps signal ≤ threshold."""

    name: str
    signal: str
    gate: str | None = None  # judged only where this signal …
    gate_from: int = 0  # … is at least this

    @property
    def is_least(self) -> bool:
        """Whether the threshold is the least value kept."""
        return self.name.startswith("min_")

    def applies(self, signals: Mapping[str, Any]) -> bool:
        """Whether the document is long enough to be judged by this rule."""
        return self.gate is None or signals[self.gate] >= self.gate_from

    def passes(self, signals: Mapping[str, Any], threshold: float) -> bool:
        """Whether a document with these signals is kept by this rule."""
        value = signals[self.signal]
        if not self.applies(signals):
            return True
        return value >= threshold if self.is_least else value <= threshold


RULES = (
    Rule("min_words", "words"),
    Rule("min_mean_run", "mean_run"),
    Rule("max_mean_run", "mean_run"),
    Rule("min_letter_share", "letter_share"),
    Rule("max_digit_share", "digit_share"),
    Rule("max_symbol_share", "symbol_share"),
    Rule("min_end_share", "end_share", "lines", 4),
    Rule("max_bullet_share", "bullet_share", "lines", 4),
    Rule("max_repeated_line_share", "repeated_line_share"),
    Rule("max_repeated_shingle_share", "repeated_shingle_share"),
    Rule("min_function_share", "function_share", "words", 20),
    Rule("max_boilerplate_share", "boilerplate_share"),
)


@dataclass(frozen=True)
class Reason:
    """Why a document was dropped."""

    stage: str
    rule: str
    value: float
    threshold: float


def threshold_of(rules: Mapping[str, Any], name: str, lang: str) -> float | None:
    """The threshold of one rule for one language; None where the rule does not judge that language."""
    by_language = rules[name]
    return by_language[lang] if lang in by_language else by_language.get("*")


def judge(config: RulesConfig, languages: np.ndarray, columns: Mapping[str, np.ndarray]) -> dict[int, list[Reason]]:
    """Every rule each document fails.

    Args:
        config: the thresholds.
        languages: language code per document (N,).
        columns: signal name → values (N,).

    Returns:
        row → reasons, in the order of ``RULES``; rows that pass all rules are absent.
    """
    failed: dict[int, list[Reason]] = {}
    if not config.enabled:
        return failed
    thresholds = config.model_dump()
    for lang in sorted(set(languages.tolist())):
        rows = np.flatnonzero(languages == lang)
        for rule in RULES:
            threshold = threshold_of(thresholds, rule.name, lang)
            if threshold is None:
                continue
            values = columns[rule.signal][rows]
            bad = values < threshold if rule.is_least else values > threshold
            if rule.gate is not None:
                bad &= columns[rule.gate][rows] >= rule.gate_from
            for row, value in zip(rows[bad].tolist(), values[bad].tolist(), strict=True):
                failed.setdefault(row, []).append(Reason(STAGE, rule.name, float(value), threshold))
    return failed

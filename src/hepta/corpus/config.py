"""Keys of ``hepta corpus build``: what is read, which rules judge it, how twins and splits are decided."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from hepta.config import Config, StageConfig, identity, input_path, operational

Thresholds = dict[str, float | None]  # language → threshold; "*" for every language not named; None switches off

DEFAULT_RULES: dict[str, Thresholds] = {
    "min_words": {"en": 8, "zh": 12, "*": 1},
    "min_mean_run": {"en": 2.5, "zh": 2.5},
    "max_mean_run": {"en": 12},
    "min_letter_share": {"en": 0.65, "zh": 0.6, "*": 0.3},
    "max_digit_share": {"en": 0.25, "zh": 0.25},
    "max_symbol_share": {"en": 0.1, "zh": 0.1, "*": 0.3},
    "min_end_share": {"en": 0.1, "zh": 0.1},
    "max_bullet_share": {"en": 0.9, "zh": 0.9},
    "max_repeated_line_share": {"en": 0.3, "zh": 0.3, "*": 0.5},
    "max_repeated_shingle_share": {"en": 0.4, "zh": 0.4, "*": 0.6},
    "min_function_share": {"en": 0.06, "zh": 0.02},
    "max_boilerplate_share": {"en": 0.3, "zh": 0.3},
}


def _rule(name: str, doc: str) -> Any:
    return identity(dict(DEFAULT_RULES[name]), doc)


class RulesConfig(Config):
    """Thresholds per language; ``rules.min_words.en=5`` changes one, ``rules.min_words.zh=null`` switches it off."""

    enabled: bool = identity(True, "judge documents by the rules at all")
    min_words: Thresholds = _rule("min_words", "words (Latin) or characters (Han)")
    min_mean_run: Thresholds = _rule("min_mean_run", "mean letters per word (en) or clause (zh)")
    max_mean_run: Thresholds = _rule("max_mean_run", "mean letters per word")
    min_letter_share: Thresholds = _rule("min_letter_share", "letters among all that is not space")
    max_digit_share: Thresholds = _rule("max_digit_share", "digits among all that is not space")
    max_symbol_share: Thresholds = _rule("max_symbol_share", "symbols such as # | { } = among all that is not space")
    min_end_share: Thresholds = _rule("min_end_share", "lines that end a sentence, judged from 4 lines on")
    max_bullet_share: Thresholds = _rule("max_bullet_share", "lines that begin with a bullet, judged from 4 lines on")
    max_repeated_line_share: Thresholds = _rule("max_repeated_line_share", "characters in repeated lines")
    max_repeated_shingle_share: Thresholds = _rule("max_repeated_shingle_share", "repeated 5-word or 8-character runs")
    min_function_share: Thresholds = _rule("min_function_share", "function words (the, 的 …), judged from 20 words on")
    max_boilerplate_share: Thresholds = _rule("max_boilerplate_share", "characters in lines of page furniture")

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        """A threshold given for one language leaves those of the others as they are."""
        if not isinstance(values, Mapping):
            return values
        merged = dict(values)
        for name, default in DEFAULT_RULES.items():
            if isinstance(merged.get(name), Mapping):
                merged[name] = {**default, **merged[name]}
        return merged


class DedupConfig(Config):
    """When two documents are twins."""

    enabled: bool = identity(True, "drop duplicates (twins never straddle the splits even when this is off)")
    threshold: float = identity(0.8, "true Jaccard similarity from which two documents are twins", gt=0, le=1)
    bands: int = identity(25, "bands of the MinHash signature", ge=1)
    rows: int = identity(5, "rows of each band; bands × rows ≤ 128", ge=1)
    max_cluster: int = identity(20, "clusters with more distinct documents are reported and stay in train", ge=2)

    @model_validator(mode="after")
    def _fits(self) -> "DedupConfig":
        if self.bands * self.rows > 128:
            raise ValueError(f"bands × rows is {self.bands * self.rows}; the signature has 128 values")
        return self


class SplitConfig(Config):
    """Shares held out for validation and test, chosen by a hash of the twin cluster."""

    val: float = identity(0.03, "share of documents for validation", ge=0, lt=0.5)
    test: float = identity(0.03, "share of documents for testing", ge=0, lt=0.5)
    min_documents: int = identity(3, "least documents per language in each of a language with ten times as many", ge=0)


class HtmlConfig(Config):
    """Limits for pages from strangers."""

    max_bytes: int = identity(5_000_000, "larger pages are quarantined", ge=1)
    seconds: float = identity(10, "pages that take longer to extract are quarantined", gt=0)


class CorpusConfig(StageConfig):
    """Raw text to clean documents."""

    input: list[str] = input_path(doc="[NAME=]PATH of files, folders or hepta fetch outputs", min_length=1)
    text_column: str = identity("text", "column or key that holds the text")
    id_column: str | None = identity(None, "column or key that holds a stable id; default: a hash of the record")
    txt: Literal["file", "line"] = identity("file", "a .txt file is one document, or one document per line")
    encoding: str = identity("utf-8", "encoding of .txt, .csv and .jsonl files")
    languages: list[str] = identity([], "keep only these languages (en, zh, ...); empty keeps all")
    rules: RulesConfig = identity(RulesConfig(), "quality rules, thresholds per language")
    dedup: DedupConfig = identity(DedupConfig(), "exact and near duplicates")
    split: SplitConfig = identity(SplitConfig(), "train/val/test")
    html: HtmlConfig = identity(HtmlConfig(), "limits for HTML pages")
    max_bad: float = identity(0.05, "share of unreadable records or files above which the build fails", ge=0, le=1)
    workers: int | None = operational(None, "processes; default: one per core", ge=1)

    @field_validator("input", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [str(value)] if isinstance(value, str | Path) else value

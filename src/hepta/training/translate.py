"""``hepta tune --task translate``: an encoder–decoder Transformer from sentence pairs, judged by BLEU and chrF."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hepta.catalog.documents import language_by_script
from hepta.config import HeptaError
from hepta.console import say
from hepta.data.order import IGNORE
from hepta.data.pairs import EncodedPair, Pair, PairOrder, PairSplits, batch_of, encode_pairs, load_pairs, split_pairs
from hepta.evaluation.translation import Memory, TranslationScores, bleu_and_chrf, score_translations
from hepta.generation.translate import open_translator, translate
from hepta.model.families import PRESETS
from hepta.model.load import build_model, save_model
from hepta.model.translator import Translator
from hepta.objectives.translation import Translation
from hepta.stage import atomic_directory, claim, withdraw_if_refused, write_atomic, write_json
from hepta.tokenizer.load import Tokenizer, load_tokenizer
from hepta.training.config import TranslateConfig
from hepta.training.job import Job
from hepta.training.loop import train
from hepta.training.pretrain import restore_weights
from hepta.training.result import TrainingResult, already_done, finish
from hepta.training.samples import Prompt

VERSION = 1
SAMPLES = 20  # test sentences whose translations are shown
VAL_ROWS = 64  # pairs of one forward pass of the evaluation
HAN_RUN = 2  # Han characters in a token at most: words, not phrases


def automatic_translation_lr(width: int) -> float:
    """Peak rate by width: 0.36 / D, which is Vaswani et al.'s 7.0e-4 at 512, and 2.8e-3 at 128."""
    return 0.36 / width


def translate_task(config: TranslateConfig) -> TrainingResult:
    """Train a translator on sentence pairs; the same call goes on after a stop.

    Raises:
        HeptaError: no pairs, too few to hold any out, all too long, another kind of model, another run in the output.
        Interrupted: stopped by a signal, state saved.
    """
    stage = claim(config, "tune", VERSION)
    if stage.state == "done":
        return already_done(stage, config)
    with withdraw_if_refused(stage):
        job, splits, report = _prepare(config)
    outcome = train(config, stage, job)
    found = {"before": _bleu_of(outcome.before), "after": _bleu_of(outcome.final)}
    translation = judge(job.model, job.tokenizer, splits, config.beam) | {"validation": found}
    return finish(stage, job, outcome, report, translation=translation)


def describe_row(row: dict[str, Any]) -> str:
    """An evaluation row as one line."""
    told = f"held out: loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.1%}"
    return f"{told}, greedy BLEU {row['val_bleu']:.1f}, chrF {row['val_chrf']:.1f}"


def _bleu_of(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("val_loss", "val_bleu", "val_chrf") if key in row}


def _prepare(config: TranslateConfig) -> tuple[Job, PairSplits, dict[str, Any]]:
    pairs, loading = load_pairs(config.data, config.text, config.label, config.bad_rows)
    splits = split_pairs(pairs)
    model, tokenizer = _model(config, splits.train)
    sides, length = ("train", "val"), config.sequence_length
    encoded = {side: encode_pairs(getattr(splits, side), tokenizer, length) for side in sides}
    order = PairOrder(encoded["train"][0], tokenizer.pad_id, config.rows, config.seed)
    report = {
        "loading": loading, **splits.report, **{side: counts for side, (_, counts) in encoded.items()},
        "vocabulary": tokenizer.size,
    }  # fmt: skip
    provenance = {
        "verb": "tune", "task": "translate", "model": config.model, "data": order.digest, "seed": config.seed,
        "sequence_length": config.sequence_length,
    }  # fmt: skip
    held_out = _Validation(model, tokenizer, encoded["val"][0], splits.val)
    prompts = [Prompt(p.source, [], "translation", language_by_script(p.source), True) for p in splits.test[:SAMPLES]]
    job = Job(
        verb="tune", model=model, tokenizer=tokenizer, train=order, held_out=None, prompts=prompts,
        lr=automatic_translation_lr(model.config.hidden_size),
        save=lambda place, dtype: save_model(model, place, tokenizer.path, dtype, provenance),
        restore=lambda place: restore_weights(model, place),
        objective=Translation(config.label_smoothing), evaluate=held_out.scores,
        answer=lambda some: [t.text for t in translate(model, tokenizer, [p.text for p in some], config.beam)],
        patience=config.patience, describe=describe_row,
    )  # fmt: skip
    return job, splits, report


def _model(config: TranslateConfig, train: Sequence[Pair]) -> tuple[Translator, Tokenizer]:
    """The model and its tokenizer, trained for this run where none is given."""
    if config.model not in PRESETS:
        if config.tokenizer is not None:
            raise HeptaError(f"tokenizer {config.tokenizer}: {config.model} has its own; leave the key out")
        model, tokenizer = open_translator(config.model)
        return _with_dropout(model, config.dropout), tokenizer
    place = config.tokenizer or config.output / "tokenizer"
    if config.tokenizer is None and not place.is_dir():
        train_pair_tokenizer(train, config.vocab_size, place)
    tokenizer = load_tokenizer(place)
    model = build_model(config.model, tokenizer.padded_size, config.seed)
    if not isinstance(model, Translator):
        raise HeptaError(f"model {config.model!r}: is no translator; use transformer-nano or transformer-base")
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return _with_dropout(model, config.dropout, **ends), tokenizer


def _with_dropout(model: Translator, dropout: float, **ids: int) -> Translator:
    """The same weights in a model with this dropout, and these special ids."""
    changed = Translator(model.config.replace(dropout=dropout, **ids))
    changed.load_state_dict(model.state_dict())
    return changed


def train_pair_tokenizer(pairs: Sequence[Pair], vocab_size: int, output: Path) -> None:
    """One byte-level BPE for both languages, from the training pairs alone."""
    from hepta.tokenizer.train import tokenizer_config, train_bpe

    say(f"tokenizer: training {vocab_size} tokens on both sides of {len(pairs):,} pairs")
    tokenizer = train_bpe((text for pair in pairs for text in (pair.source, pair.target)), vocab_size, HAN_RUN)
    with atomic_directory(output) as directory:
        write_atomic(directory / "tokenizer.json", tokenizer.to_str(pretty=True))
        plain = {key: value for key, value in tokenizer_config().items() if key != "chat_template"}
        write_json(directory / "tokenizer_config.json", plain)


class _Validation:
    """What is measured on the way: loss and accuracy of each next token, BLEU and chrF of greedy translations."""

    def __init__(
        self, model: Translator, tokenizer: Tokenizer, encoded: Sequence[EncodedPair], pairs: Sequence[Pair]
    ) -> None:
        self.model, self.tokenizer, self.pairs = model, tokenizer, pairs
        self.encoded = sorted(encoded, key=lambda one: len(one.target))

    @torch.no_grad()
    def scores(self, most_tokens: int | None) -> dict[str, Any]:
        """The evaluation row, without label smoothing; of about ``most_tokens`` target tokens, None: of all."""
        objective, training = Translation(), self.model.training
        device = self.model.output_weight.device
        self.model.eval()
        nats = right = tokens = 0.0
        for start in range(0, len(self.encoded), VAL_ROWS):
            if most_tokens is not None and tokens >= most_tokens:
                break
            made = batch_of(self.encoded[start : start + VAL_ROWS], self.tokenizer.pad_id)
            batch = {name: torch.from_numpy(value).to(device) for name, value in made.items()}
            result = objective.scores(self.model, batch)
            nats += float(result.losses.double().sum())
            right += int(result.correct.sum())
            tokens += int(np.sum(made["labels"] != IGNORE))
        self.model.train(training)
        row = {"val_loss": nats / tokens, "val_accuracy": right / tokens}
        texts = [one.text for one in translate(self.model, self.tokenizer, [p.source for p in self.pairs], beam=1)]
        found = bleu_and_chrf(texts, [pair.target for pair in self.pairs])
        return row | {f"val_{name}": value for name, value in found.items()}


def judge(model: Translator, tokenizer: Tokenizer, splits: PairSplits, beam: int) -> dict[str, Any]:
    """BLEU and chrF on the test pairs, beside two baselines that understand nothing.

    Returns:
        bleu, chrf, interval and signature of each; ``baselines`` with the same of copying the source, and of the
        translation of the most similar training source; ``samples``.
    """
    sources, references = [p.source for p in splits.test], [p.target for p in splits.test]
    memory = Memory([p.source for p in splits.train], [p.target for p in splits.train])
    found = translate(model, tokenizer, sources, beam)
    texts = [one.text for one in found]
    baselines = {"copy": sources, "memory": [memory.translate(source) for source in sources]}
    scores = score_translations(texts, references)
    return {
        **_as_facts(scores), "signature": scores.signature, "sentences": len(sources), "beam": beam,
        "baselines": {name: _as_facts(score_translations(said, references)) for name, said in baselines.items()},
        "samples": [
            {"source": source, "reference": wanted, "translation": one.text, "score": round(one.score, 4)}
            for source, wanted, one in zip(sources[:SAMPLES], references, found, strict=False)
        ],
    }  # fmt: skip


def _as_facts(scores: TranslationScores) -> dict[str, Any]:
    intervals = {"bleu": list(scores.bleu_interval), "chrf": list(scores.chrf_interval)}
    return {"bleu": scores.bleu, "chrf": scores.chrf, "interval": intervals}

"""``hepta pretrain --model ngram``: the run that counts where others take steps; same output, same facts."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hepta.config import HeptaError
from hepta.console import say, warn
from hepta.data.order import TokenOrder
from hepta.data.shards import open_streams
from hepta.model.families import preset
from hepta.model.load import save_model
from hepta.model.ngram import NGram, count_ngrams
from hepta.objectives.causal import Causal
from hepta.stage import Stage, atomic_directory, claim, digest_json, write_atomic
from hepta.tokenizer.load import load_tokenizer
from hepta.training.checkpoint import sweep, weights_digest
from hepta.training.config import PretrainConfig
from hepta.training.evaluate import bytes_per_token, describe_evaluation, evaluate
from hepta.training.metrics import RunLog, peak_memory_bytes
from hepta.training.resolve import RECIPE, write_environment
from hepta.training.result import TrainingResult, already_done
from hepta.training.samples import answer, completion_prompts

APPLY = {"data", "model", "output", "fresh", "seed", "device", "sequence_length", "sample_prompts"}
SEEN = 16_384  # training tokens whose loss is measured: a model that has counted them knows them almost by heart
MICRO_TOKENS = 4096  # of one evaluation batch: its log-probabilities are 4 · V bytes a token


def check_keys(config: PretrainConfig) -> None:
    """Refuse keys that counting has no use for, rather than ignore them.

    Raises:
        HeptaError: names the first one given.
    """
    for name in sorted(config.model_fields_set - APPLY):
        raise HeptaError(f"{name}: an n-gram model counts once and takes no steps, so this does not apply; omit it")
    if config.device not in ("auto", "cpu"):
        raise HeptaError(f"device {config.device!r}: n-grams are counted on the CPU; omit it")


def read_documents(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """All training documents end to end: ids (N,), and one past each document's last (D,)."""
    streams = open_streams(data, "train")
    if not streams:
        raise HeptaError(f"{data}: split 'train' holds no tokens; give the corpus more documents")
    before = np.cumsum([0, *(stream.total for stream in streams[:-1])])
    ends = [stream.ends + start for stream, start in zip(streams, before, strict=True)]
    return np.concatenate([stream.read(0, stream.total) for stream in streams]), np.concatenate(ends)


def count(config: PretrainConfig, manifest: dict[str, Any], version: int) -> TrainingResult:
    """Count n-grams of the training split, smooth them, score the held-out split; the library function's other half.

    Args:
        config: ``model`` names an n-gram preset.
        manifest: of the token shards.
        version: of the stage.

    Raises:
        HeptaError: a key that does not apply, no training tokens, another run in the output.
    """
    check_keys(config)
    stage = claim(config, "pretrain", version)
    if stage.state == "done":
        return already_done(stage, config)
    sweep(config.output)
    tokenizer_dir = config.data / "tokenizer"
    tokenizer = load_tokenizer(tokenizer_dir)
    began = time.perf_counter()
    ids, ends = read_documents(config.data)
    model = NGram.of(count_ngrams(ids, ends, tokenizer.padded_size, preset(config.model).order)).eval()
    seconds = time.perf_counter() - began
    say(f"counted {len(ids):,} tokens in {seconds:.1f} s: {model.config.num_parameters:,} n-grams")
    if guessed := [k for k, known in enumerate(model.config.estimated, 1) if not known]:
        warn(f"too few n-grams of order {guessed} to estimate discounts from; the fallback stands in for them")
    T, data = config.sequence_length, manifest["digest"]
    provenance = {"verb": "pretrain", "model": config.model, "data": data, "sequence_length": T}
    with atomic_directory(config.output / "model") as directory:
        save_model(model, directory, tokenizer_dir, None, provenance)
    values = {"verb": "pretrain", **config.model_dump(mode="json")}
    write_atomic(config.output / RECIPE, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    write_environment(config.output)
    train_loss, row = _score(config, model, tokenizer)
    return _finish(stage, model, tokenizer, len(ids), seconds, train_loss, row)


def _score(config: PretrainConfig, model: NGram, tokenizer: Any) -> tuple[float, dict[str, Any]]:
    """Loss on some of the training tokens, and the evaluation row of all held-out ones; answers the prompts."""
    T, widths = config.sequence_length, bytes_per_token(tokenizer, model.config.vocab_size)
    micro, row = max(1, MICRO_TOKENS // T), {"step": 0}
    log = RunLog(config.output, -1)
    try:
        seen = evaluate(model, Causal(), TokenOrder(config.data, "train", T), widths, (), micro, SEEN)
        try:
            held_out = TokenOrder(config.data, "val", T)
        except HeptaError:
            warn(f"{config.data}: nothing is held out (split val is empty), so this run has no validation loss")
        else:
            row |= evaluate(model, Causal(), held_out, widths, (), micro).row()
            log.metrics(row)
            say(describe_evaluation(row, model.config.vocab_size))
        prompts = completion_prompts(config.sample_prompts, tokenizer)
        for prompt, text in zip(prompts, answer(model, tokenizer, prompts), strict=True):
            said = {"kind": prompt.kind, "lang": prompt.lang, "held_out": False}
            log.sample({"step": 0, "stage": "pretrain", "prompt": prompt.text, "text": text, **said})
    finally:
        log.close()
    return seen.overall.loss, row


def _finish(
    stage: Stage, model: NGram, tokenizer: Any, tokens: int, seconds: float, train_loss: float, row: dict[str, Any]
) -> TrainingResult:
    shape = model.config
    report = {
        "order": shape.order, "ngrams": shape.parameters(),
        "discounts": {f"{k}-grams": list(values) for k, values in enumerate(shape.discounts, 1)},
        "fallback_orders": [k for k, known in enumerate(shape.estimated, 1) if not known],
    }  # fmt: skip
    result = TrainingResult(
        output=str(stage.output), model=str(stage.output / "model"), parameters=shape.num_parameters,
        trained_parameters=shape.num_parameters, steps=0, tokens=tokens, tokens_per_second=tokens / seconds, mfu=0.0,
        seconds=seconds, final={"train_loss": train_loss, **{k: v for k, v in row.items() if k != "step"}}, before={},
        uniform_loss=math.log(shape.vocab_size), weights_sha256=weights_digest(model.named_parameters()),
        peak_memory_bytes=peak_memory_bytes(), skipped_steps=0, precision="counts", compiled=False, lr=0.0,
        data_report=report, p_stop={}, prompt_language={},
    )  # fmt: skip
    facts = {key: value for key, value in asdict(result).items() if key not in ("output", "model")}
    stage.finish(digest_json([result.weights_sha256, tokenizer.sha256]), facts)
    return result

"""hepta: raw text to your own chat model, every step readable, nothing silent."""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "hepta.model.load",
    "load_tokenizer": "hepta.tokenizer.load",
    "Engine": "hepta.generation.engine",
    "pretrain": "hepta.training.pretrain",
    "PretrainConfig": "hepta.training.config",
    "sft": "hepta.training.sft",
    "SftConfig": "hepta.training.config",
    "tune": "hepta.training.tune",
    "TuneConfig": "hepta.training.config",
    "TranslateConfig": "hepta.training.config",
    "predict": "hepta.evaluation.predict",
    "PredictConfig": "hepta.evaluation.config",
    "build_corpus": "hepta.corpus.build",
    "CorpusConfig": "hepta.corpus.config",
    "build_tokens": "hepta.data.build",
    "TokensConfig": "hepta.data.config",
    "train_tokenizer": "hepta.tokenizer.train",
    "TokenizerConfig": "hepta.tokenizer.config",
    "evaluate_text": "hepta.evaluation.text",
    "EvalConfig": "hepta.evaluation.config",
    "quantize": "hepta.compression.quantize",
    "QuantizeConfig": "hepta.compression.config",
    "explain_attention": "hepta.explanation.attention",
    "AttentionConfig": "hepta.explanation.config",
    "explain_lens": "hepta.explanation.lens",
    "LensConfig": "hepta.explanation.config",
    "prune": "hepta.compression.prune",
    "PruneConfig": "hepta.compression.config",
    "distill": "hepta.compression.distill",
    "DistillConfig": "hepta.compression.config",
    "run_recipe": "hepta.runner.recipe",
    "RunConfig": "hepta.runner.recipe",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import hepta`` stays instant."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'hepta' has no attribute {name!r}; public: {', '.join(__all__)}")

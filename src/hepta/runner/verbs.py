"""The table of verbs: which config and which library function stand behind each name."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hepta.config import Config, HeptaError, StageConfig
from hepta.stage import withdraw


@dataclass(frozen=True)
class Verb:
    """A verb's config class and function, as ``module:name``, imported only when used."""

    config: str
    function: str

    def load_config_class(self) -> type[Config]:
        """Import the config class (never torch)."""
        return _load(self.config)

    def call(self, config: Config) -> Any:
        """Run the verb; wrong input leaves no empty claim on the output behind."""
        try:
            return self.load_function()(config)
        except HeptaError:
            if isinstance(config, StageConfig) and config.output is not None:
                withdraw(config.output)
            raise

    def load_function(self) -> Callable[[Any], Any]:
        """Import the library function behind the verb."""
        return _load(self.function)


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


VERBS: dict[str, Verb] = {
    "fetch": Verb("hepta.catalog.config:FetchConfig", "hepta.catalog.fetch:fetch"),
    "corpus": Verb("hepta.corpus.config:CorpusConfig", "hepta.corpus.build:build_corpus"),
    "tokenizer": Verb("hepta.tokenizer.config:TokenizerConfig", "hepta.tokenizer.train:train_tokenizer"),
    "tokenizer report": Verb("hepta.tokenizer.config:TokenizerReportConfig", "hepta.tokenizer.report:report_tokenizer"),
    "tokens": Verb("hepta.data.config:TokensConfig", "hepta.data.build:build_tokens"),
    "pretrain": Verb("hepta.training.config:PretrainConfig", "hepta.training.pretrain:pretrain"),
    "sft": Verb("hepta.training.config:SftConfig", "hepta.training.sft:sft"),
    "tune": Verb("hepta.training.config:TuneConfig", "hepta.training.tune:tune"),
    "predict": Verb("hepta.evaluation.config:PredictConfig", "hepta.evaluation.predict:predict"),
    "compress distill": Verb("hepta.compression.config:DistillConfig", "hepta.compression.distill:distill"),
    "compress prune": Verb("hepta.compression.config:PruneConfig", "hepta.compression.prune:prune"),
    "eval": Verb("hepta.evaluation.config:EvalConfig", "hepta.evaluation.text:evaluate_text"),
    "compare": Verb("hepta.evaluation.config:CompareConfig", "hepta.compression.compare:compare_models"),
    "compare runs": Verb("hepta.training.config:RunsConfig", "hepta.reports.runs:compare_runs"),
    "generate": Verb("hepta.generation.config:GenerateConfig", "hepta.generation.generate:generate"),
    "chat": Verb("hepta.generation.config:ChatConfig", "hepta.generation.chat:chat"),
    "plan": Verb("hepta.planning.config:PlanConfig", "hepta.planning.advise:plan_or_advise"),
    "compress quantize": Verb("hepta.compression.config:QuantizeConfig", "hepta.compression.quantize:quantize"),
    "doctor machine": Verb("hepta.planning.config:MachineConfig", "hepta.planning.probe:probe_machine"),
    "doctor run": Verb("hepta.training.config:RunDoctorConfig", "hepta.training.diagnosis:diagnose"),
    "explain attention": Verb(
        "hepta.explanation.config:AttentionConfig", "hepta.explanation.attention:explain_attention"
    ),
    "explain attribution": Verb(
        "hepta.explanation.config:AttributionConfig", "hepta.explanation.attribution:explain_attribution"
    ),
    "explain lens": Verb("hepta.explanation.config:LensConfig", "hepta.explanation.lens:explain_lens"),
    "explain neurons": Verb("hepta.explanation.config:NeuronsConfig", "hepta.explanation.neurons:explain_neurons"),
    "report": Verb("hepta.reports.config:ReportConfig", "hepta.reports.page:write_report"),
    "run": Verb("hepta.runner.config:RunConfig", "hepta.runner.recipe:run_recipe"),
}

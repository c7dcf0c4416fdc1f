"""``hepta compress prune``: a model with zeros among its weights, or with fewer heads and neurons."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hepta.compression.calibrate import InputMoments, calibration_batches, linear_inputs
from hepta.compression.config import PruneConfig
from hepta.compression.size import compressed_bytes, stored_dtype
from hepta.compression.sparse import hold, importance, least_important, linear_maps, set_zero, two_of_four, zeros_of
from hepta.compression.structured import choose_heads, choose_neurons, cut, heads_to_remove, neurons_to_remove
from hepta.config import HeptaError
from hepta.console import duration, say
from hepta.data.order import TokenOrder
from hepta.data.shards import read_tokens_manifest
from hepta.evaluation.compare import weight_bytes
from hepta.evaluation.text import load_pair
from hepta.model.load import ADAPTER, load_model, refuse_quantized, resolve_model, save_model
from hepta.model.network import Network
from hepta.objectives.causal import Causal, token_losses
from hepta.planning.rates import automatic_lr
from hepta.stage import Stage, atomic_directory, claim, digest_json, read_json, withdraw_if_refused, write_json
from hepta.tokenizer.load import Tokenizer
from hepta.training.checkpoint import weights_digest
from hepta.training.evaluate import bytes_per_token, evaluate
from hepta.training.job import Job
from hepta.training.loop import train
from hepta.training.pretrain import restore_weights, token_orders
from hepta.training.result import result_of
from hepta.training.samples import completion_prompts

VERSION = 1
PRUNED, FACTS = "pruned", "pruning.json"  # inside a run: the model before it is trained on, and what was done to it
MICRO = 16  # sequences of one measuring pass
Measure = Callable[[Network], float]


@dataclass(frozen=True)
class PruneResult:
    """A pruned model. Losses are nats per token of ``measured_on``, None where there was no text."""

    output: str
    model: str
    done: str  # in words
    method: str
    parameters_before: int
    parameters: int
    zeros: int  # weights that are zero, of the layers' matrices
    bytes_before: int  # of the weight files
    bytes: int
    zstd_bytes_before: int  # the same files under zstd -3
    zstd_bytes: int
    matrices: dict[str, dict[str, int]]  # weights and zeros of each; empty where parts were cut away
    heads: list[list[int]]  # query heads that stayed, by layer; empty where all did
    measured_on: str
    loss_before: float | None
    loss_pruned: float | None
    loss: float | None  # of the model that is published: after training where there was any
    weights_sha256: str
    steps: int = 0  # of training afterwards
    seconds: float = 0.0

    def __str__(self) -> str:
        rows = {"model": self.model, "pruned": f"{self.done}, by {self.method}"}
        share = f", {self.zeros / self.parameters:.0%} of them zero" if self.zeros else ""
        rows["parameters"] = f"{self.parameters_before:,} → {self.parameters:,}{share}"
        rows["weight file"] = f"{self.bytes_before / 1e6:.1f} → {self.bytes / 1e6:.1f} MB"
        rows["under zstd"] = f"{self.zstd_bytes_before / 1e6:.1f} → {self.zstd_bytes / 1e6:.1f} MB"
        if self.zeros:
            rows["note"] = "zeros are stored as zeros: the file shrinks only when compressed, and nothing runs faster"
        if self.loss_before is not None:
            rows["loss"] = f"{self.loss_before:.4f} → {self.loss_pruned:.4f} ({self.measured_on})"
        if self.steps:
            rows["trained"] = f"{self.steps:,} steps in {duration(self.seconds)}; loss {self.loss:.4f}"
        return "\n".join(f"{name:12} {value}" for name, value in rows.items())


def prune(config: PruneConfig) -> PruneResult:
    """Prune a model and, with ``data``, train what is left; the same call goes on after a stop.

    Raises:
        HeptaError: no such model, one that has not what is to go, no text where text is needed, another run there.
        Interrupted: stopped by a signal while training, state saved.
    """
    stage = claim(config, "compress prune", VERSION)
    if stage.state == "done":
        assert stage.manifest is not None
        say(f"{config.output}: already done")
        return _result(config, stage.manifest["facts"])
    trains = config.data is not None
    with withdraw_if_refused(stage):
        if not (config.output / FACTS).is_file():
            _Pruning(config, stage).write(config.output / (PRUNED if trains else "model"))
    facts = read_json(config.output / FACTS)
    if trains:
        facts |= _recover(config, stage)
    published = config.output / "model"
    facts |= {"bytes": weight_bytes(resolve_model(published)), "zstd_bytes": compressed_bytes(published)}
    stage.finish(digest_json([facts["weights_sha256"], facts["tokenizer_sha256"]]), facts)
    return _result(config, facts)


def _result(config: PruneConfig, facts: dict[str, Any]) -> PruneResult:
    known = {entry.name for entry in fields(PruneResult)} - {"output", "model"}
    values = {key: value for key, value in facts.items() if key in known}
    return PruneResult(output=str(config.output), model=str(config.output / "model"), **values)


class _Pruning:
    """The model, the text it is asked about, and what goes."""

    def __init__(self, config: PruneConfig, stage: Stage) -> None:
        self.config, self.stage, self.place = config, stage, resolve_model(config.model)
        if (self.place / ADAPTER).is_file():
            raise HeptaError(f"{config.model}: is an adapter beside its base; prune the base, then tune it again")
        refuse_quantized(self.place)
        self.model, self.tokenizer, trained = load_pair(config.model, None, "fp32", "cpu")
        linear_maps(self.model)
        kind = self.model.config.kind
        causal = kind == "causal"
        if config.data is not None and not causal:
            raise HeptaError(f"{config.model}: is {kind}, and training afterwards is for causal models; omit --data")
        self.length = min(config.sequence_length, trained)
        text = config.calibrate or config.data
        batches = [] if text is None else calibration_batches(text, self.tokenizer, config.sequences, self.length)
        self.ids = torch.cat(batches) if batches else None  # (N, T)
        if self.ids is not None and len(self.ids) < 2:
            raise HeptaError(f"{text}: one sequence of {self.length} tokens is too little; give more text")
        self.method = ("magnitude" if text is None else "activation") if config.method == "auto" else config.method
        self.measure, self.measured_on = self._yardstick(text) if causal else (None, "")

    def _yardstick(self, text: Path | None) -> tuple[Measure | None, str]:
        """A model's loss on text that neither chose the weights nor trains them, and that text's name."""
        config = self.config
        if config.data is not None:
            _, held_out = token_orders(config, read_tokens_manifest(config.data))
            if held_out is not None:
                return _on_shards(held_out, self.tokenizer), f"validation split of {config.data}"
        if self.ids is None:
            return None, ""
        held = self.ids[::4]
        return (lambda model: _loss_of(model, held)), f"{held.numel():,} tokens of {text}, not calibrated with"

    def _moments(self) -> dict[str, InputMoments] | None:
        if self.method == "magnitude":
            return None
        assert self.ids is not None, "the config asks for text"
        chosen = self.ids[torch.arange(len(self.ids)) % 4 != 0]
        return linear_inputs(self.model, chosen.split(MICRO))

    def write(self, target: Path) -> None:
        """Prune, and write the model directory and the facts of it."""
        config, before = self.config, self.model
        loss_before = self.measure(before) if self.measure else None
        size = before.config.num_parameters
        if config.heads is None and config.neurons is None:
            model, told = before, self._zeros()
        else:
            model, told = self._cuts()
        loss = self.measure(model) if self.measure else None
        provenance = {
            "verb": "compress prune", "model": self.stage.inputs["model"], "done": told["done"], "method": self.method,
            "sequence_length": self.length,
        }  # fmt: skip
        dtype = stored_dtype(self.place) if config.data is None else None
        with atomic_directory(target) as directory:
            save_model(model, directory, self.tokenizer.path, dtype, provenance)
        write_json(config.output / FACTS, {
            **told, "method": self.method, "parameters_before": size, "parameters": model.config.num_parameters,
            "bytes_before": weight_bytes(self.place), "zstd_bytes_before": compressed_bytes(self.place),
            "measured_on": self.measured_on, "loss_before": loss_before, "loss_pruned": loss, "loss": loss,
            "weights_sha256": weights_digest(model.named_parameters()), "tokenizer_sha256": self.tokenizer.sha256,
        })  # fmt: skip

    def _zeros(self) -> dict[str, Any]:
        """Set weights to zero, in place."""
        config, maps, moments = self.config, linear_maps(self.model), self._moments()
        by_row = config.within == "row" or (config.within == "auto" and self.method == "activation")
        for name, module in maps.items():
            if moments is not None and name not in moments:
                raise HeptaError(f"{name}: nobody calls this map, so its inputs are unknown; use method=magnitude")
            scores = importance(module.weight, None if moments is None else moments[name].squares)
            if config.pattern == "2:4":
                gone = two_of_four(scores, name)
            else:
                assert config.sparsity is not None
                gone = least_important(scores, config.sparsity, by_row)
            set_zero(maps, {name: gone})
        found = {name: {"weights": mask.numel(), "zeros": int(mask.sum())} for name, mask in zeros_of(maps).items()}
        if config.pattern == "2:4":
            done = "two of each four weights zero"
        else:
            done = f"{config.sparsity:.0%} of each {'row' if by_row else 'matrix'} zero"
        return {"done": done, "zeros": sum(m["zeros"] for m in found.values()), "matrices": found, "heads": []}

    def _cuts(self) -> tuple[Network, dict[str, Any]]:
        """A smaller copy."""
        config, model = self.config, self.model
        heads = None if config.heads is None else heads_to_remove(model, config.heads)
        neurons = None if config.neurons is None else neurons_to_remove(model, config.neurons)
        moments = self._moments()
        kept_heads = None if heads is None else choose_heads(model, heads, moments)
        kept_neurons = None if neurons is None else choose_neurons(model, neurons, moments)
        words = [] if heads is None else [f"{heads} of {model.config.num_heads} heads"]
        words += [] if neurons is None else [f"{neurons} of {model.config.intermediate_size} neurons"]
        stayed = [stay.tolist() for stay in kept_heads or []]
        told = {"done": f"{' and '.join(words)} of each layer gone", "zeros": 0, "matrices": {}, "heads": stayed}
        return cut(model, kept_heads, kept_neurons), told


def _loss_of(model: Network, ids: Tensor) -> float:
    """Mean nats per token of sequences (N, T)."""
    total = 0.0
    with torch.no_grad():
        for part in ids.split(MICRO):
            labels = part[:, 1:]
            found = model(part[:, :-1], head=lambda h, w, b, labels=labels: token_losses(h, w, labels, b))
            total += float(found.losses.double().sum())
    return total / ids[:, 1:].numel()


def _on_shards(held_out: TokenOrder, tokenizer: Tokenizer) -> Measure:
    def measure(model: Network) -> float:
        widths = bytes_per_token(tokenizer, model.config.vocab_size)
        return evaluate(model, Causal(), held_out, widths, (), MICRO).overall.loss

    return measure


def _recover(config: PruneConfig, stage: Stage) -> dict[str, Any]:
    """Train the pruned model; weights that are zero stay zero. Its facts, with those of the training."""
    assert config.data is not None
    place = config.output / PRUNED
    model, tokenizer, _ = load_pair(str(place), None, "fp32", "cpu")
    gone = zeros_of(linear_maps(model)) if config.heads is None and config.neurons is None else {}
    hold(linear_maps(model), gone)
    train_order, held_out = token_orders(config, read_tokens_manifest(config.data))
    provenance = {**read_json(place / "hepta.json")["provenance"], "sequence_length": config.sequence_length}
    job = Job(
        verb="prune", model=model, tokenizer=tokenizer, train=train_order, held_out=held_out,
        prompts=completion_prompts(config.sample_prompts, tokenizer), lr=automatic_lr(model.config) * 0.2,
        save=lambda target, dtype: save_model(model, target, place, dtype, provenance),
        restore=lambda source: restore_weights(model, source), objective=Causal(config.z_loss),
    )  # fmt: skip
    outcome = train(config, stage, job)
    report = {"sequences_per_epoch": train_order.sequences_per_epoch, "waste": train_order.waste}
    facts = asdict(result_of(stage, job, outcome, report))
    left = {name: facts[name] for name in facts if name not in ("output", "model")}
    published = load_model(config.output)
    held = _on_shards(held_out, tokenizer)(published) if held_out is not None else None
    return {**left, "loss": held, "zeros": sum(int(mask.sum()) for mask in zeros_of(linear_maps(published)).values())}

"""What a dry run can tell of a training stage before anything is read: what it downloads, needs and costs."""

from collections.abc import Sequence

from hepta.catalog.hub import PREFIX, hub_config
from hepta.config import StageConfig
from hepta.model.families import PRESETS
from hepta.model.shape import Shape
from hepta.planning.config import PlanConfig
from hepta.planning.devices import find_device
from hepta.planning.memory import Setting
from hepta.planning.plan import count_text, device_text, plan_device, read_shape
from hepta.training.config import PretrainConfig, SftConfig

Training = PretrainConfig | SftConfig


def foresee(config: StageConfig, stages: Sequence[StageConfig], devices: str | None) -> list[str]:
    """Lines on one stage of a recipe: the model that it is the first to download; where it trains, memory, days, USD.

    Args:
        config: the stage's.
        stages: all stages, in which its model may be made.
        devices: the machine to price for, as ``hepta plan`` reads it; None prices nothing.

    Raises:
        HeptaError: an unknown machine, a model that no stage makes and nobody knows.
    """
    lines, model = [], str(getattr(config, "model", ""))
    first = next((stage for stage in stages if getattr(stage, "model", None) == model), None)
    if model.startswith(PREFIX) and first is config and not hub_config(model)[1]:
        size = 2 * read_shape(model).num_parameters / 1e9
        lines.append(f"would download {model}: about {size:.1f} GB of weights in 16 bits, not in the cache")
    if devices is not None and isinstance(config, PretrainConfig | SftConfig):
        lines += _price(config, _origin(model, stages), stages, devices)
    return lines


def _origin(model: str, stages: Sequence[StageConfig]) -> str:
    """The preset, directory or hub's name behind a model that earlier stages make of one another."""
    made = {str(stage.output): stage for stage in stages}
    while model in made:
        maker = made[model]
        if not isinstance(maker, PretrainConfig | SftConfig):
            return model
        model = maker.model
    return model


def _shape(name: str, stages: Sequence[StageConfig]) -> Shape:
    """The shape behind a name; a preset takes the vocabulary that the recipe's tokenizer will have."""
    sizes = [size for stage in stages if (size := getattr(stage, "vocab_size", None)) is not None]
    padded = -(-sizes[0] // 64) * 64 if sizes else None
    return read_shape(name, padded if name in PRESETS else None)


def _price(config: Training, name: str, stages: Sequence[StageConfig], devices: str) -> list[str]:
    shape = _shape(name, stages)
    device, method = find_device(devices), getattr(config, "method", "full")
    per_step = config.batch_tokens
    tokens = config.tokens or (config.max_steps or 0) * per_step
    counted = f"{name}: {shape.num_parameters:,} parameters"
    if not tokens:
        return [f"{counted}; its tokens are known when its data are read"]
    setting = Setting(
        config.sequence_length, config.micro_batch or 1, getattr(config, "rank", 16), optimizer=config.optimizer
    )
    found = plan_device(shape, device, PlanConfig(model=name), tokens, setting)
    steps = f"{count_text(tokens)} tokens in {-(-tokens // per_step):,} steps of {per_step:,}"
    return [f"{counted}; {steps}", device_text(found, method)]

"""What the explaining verbs print: short tables for people."""

from typing import Any

from hepta.explanation.page import Explained

MOST_LINKS = 3
MOST_WORDS = 8
MOST_POSITIONS = 1


def show_attention(result: Explained) -> str:
    """Per model and kind of attention: the word's strongest links in each layer, and the heads' habits."""
    lines: list[str] = []
    for model in result.facts["models"]:
        lines += _model_lines(model)
    return "\n".join([*lines, "", f"{result.page}  (facts: {result.file})"])


def _model_lines(model: dict[str, Any]) -> list[str]:
    word = model["word"]
    lines = [f"{model['name']}: {model['family']}, {model['reads']}"]
    if "translation" in model:
        lines.append(f"translation: {model['translation']}")
    if "answer" in model:
        lines.append("answer: " + _answer(model["answer"]))
    places = len(word["places"])
    if places > 1:
        lines.append(f"{word['text']!r} stands at {places} places; this is number {word['occurrence']} (--occurrence)")
    for part in model["parts"]:
        lines += _part_lines(part, word["text"], len(model["parts"]) > 1)
    return lines


def _answer(answer: dict[str, Any]) -> str:
    return f"{answer['label']} {answer['probability']:.2f}" if "label" in answer else f"{answer['value']:.4g}"


def _part_lines(part: dict[str, Any], word: str, named: bool) -> list[str]:
    layers, focus = part["layers"], part["focus"]
    keys = part["keys"] or part["queries"]
    own = part["part"] in ("self", "encoder")
    asked = word if own else "".join(part["queries"][place]["text"] for place in focus).strip()
    heads = len(layers[0]["heads"])
    title = f"{part['part']} attention, " if named else ""
    lines = [f"{title}{len(layers)} layers × {heads} heads; {asked!r} looks at (mean of the heads):"] if focus else []
    width = len(str(len(layers)))
    for layer in layers if focus else []:
        told = "  ".join(f"{shown(keys[place])} {weight:.2f}" for place, weight in layer["links"][:MOST_LINKS])
        lines.append(f"  layer {layer['layer']:>{width}}  {told}")
    counted: dict[str, int] = {}
    for layer in layers:
        for head in layer["heads"]:
            counted[head["habit"]] = counted.get(head["habit"], 0) + 1
    ordered = sorted(counted.items(), key=lambda item: -item[1])
    return [*lines, f"  {title}heads by habit: " + ", ".join(f"{name} {count}" for name, count in ordered)]


def shown(piece: dict[str, Any]) -> str:
    """A token in one line of a terminal."""
    if piece["special"] in ("bos", "eos"):
        return f"‹{piece['special']}›"
    return readable(piece["text"])


def readable(text: str) -> str:
    """A token's text with its blank and line ends as signs."""
    return "".join("⏎" if c == "\n" else c if c.isprintable() else "�" for c in text.strip(" ")) or "␣"


def show_attribution(result: Explained) -> str:
    """Per target: its score, the completeness gap, and the words that weigh most."""
    facts = result.facts
    told = "  ".join(f"{answer['text'].strip() or '␣'} {answer['probability']:.2f}" for answer in facts["answers"])
    lines = [f"{facts['model']}: {facts['family']}, {facts['method']}, baseline {facts['baseline']}"]
    lines += [told] if told else []
    for view in facts["views"]:
        change = view["score"] - view["hidden_score"]
        score = f"{view['unit']} {view['score']:.3f}, {change:+.3f} through the words"
        lines += ["", f"{readable(view['target'])}: {score}"]
        if view["gap"] is not None:
            lines[-1] += f"; {view['steps']} steps, gap {view['gap']:+.2g} ({view['gap_share']:.2%})"
        order = sorted(range(len(view["words"])), key=lambda word: -abs(view["words"][word]))[:MOST_WORDS]
        for word in order:
            values = f"{view['words'][word]:+8.3f}  if hidden {-view['hidden'][word]:+8.3f}"
            lines.append(f"  {values}  {facts['words'][word]['text']}")
    return "\n".join([*lines, "", f"{result.page}  (facts: {result.file})"])


def show_lens(result: Explained) -> str:
    """Per position the model's answer, and each layer's likeliest token with its probability."""
    facts = result.facts
    lines = [f"{facts['name']}: {facts['family']}, {facts['layers']} layers"]
    if facts["translation"]:
        lines.append(f"translation: {facts['translation']}")
    for position in facts["positions"][-MOST_POSITIONS:]:
        token = shown(facts["tokens"][position["place"]])
        lines.append(f"after {token!r}, the answer is {position['answer']!r}" if facts["reads"] != "masked"
                     else f"at {token}, the answer is {position['answer']!r}")  # fmt: skip
        for layer, (top, kl) in enumerate(zip(position["top"], position["kl"], strict=True)):
            said = "  ".join(f"{readable(token)} {chance:.2f}" for token, chance in top[:MOST_LINKS])
            name = f"layer {layer}" if layer else "embedding"
            lines.append(f"  {name:<9} KL {kl:6.2f} nats  {said}")
    if len(facts["positions"]) > MOST_POSITIONS:
        lines.append(f"(the last of {len(facts['positions'])} positions; all are on the page)")
    return "\n".join([*lines, "", f"{result.page}  (facts: {result.file})"])


def show_neurons(result: Explained) -> str:
    """What the dearest parts cost, with their intervals, and how many cost nothing beyond noise."""
    facts = result.facts
    read = f"{facts['tokens']:,} tokens, {facts['units']} {facts['unit']}"
    lines = [f"{facts['model']}: {facts['family']}, {read}, loss {facts['loss']:.4f} nats per {facts['per']}"]
    parts = [(f"layer {n} attention", cost) for n, cost in enumerate(facts["attention"], 1)]
    parts += [(f"layer {n} MLP", cost) for n, cost in enumerate(facts["mlp"], 1)]
    heads = [(f"layer {n} head {h}", cost) for n, row in enumerate(facts["heads"], 1) for h, cost in enumerate(row, 1)]
    sampled = facts["units"] > 1
    for title, group in (("without a layer's part", parts), ("without one head", heads)):
        if group:
            lines += ["", f"{title}: nats more" + (" (95 % interval)" if sampled else "")]
        for name, cost in sorted(group, key=lambda one: -one[1]["cost"])[:MOST_WORDS]:
            interval = f"  ({cost['low']:+.4f} … {cost['high']:+.4f})" if sampled else ""
            lines.append(f"  {cost['cost']:+8.4f}{interval}  {name}")
    if not sampled:
        lines.append(f"  one of the {facts['unit']} is no sample: no intervals; give a longer text to tell noise")
    elif heads:
        idle = sum(cost["low"] <= 0 <= cost["high"] for _, cost in heads)
        lines.append(f"  {idle} of {len(heads)} heads cost nothing beyond noise on this text")
    return "\n".join([*lines, "", f"{result.page}  (facts: {result.file})"])

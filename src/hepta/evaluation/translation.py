"""How good translations are: BLEU and chrF as sacrebleu counts them, with intervals, beside two simple baselines."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hepta.catalog.documents import language_by_script

RESAMPLES = 1000
GRAMS = (1, 2, 3)  # characters, by which the nearest training source is found
TOKENIZERS = {"zh": "zh", "ja": "char"}  # how BLEU cuts words; others: 13a


@dataclass(frozen=True)
class TranslationScores:
    """BLEU and chrF of a test set, 0 to 100, with bootstrap 95 % intervals and sacrebleu's signatures."""

    bleu: float
    chrf: float
    bleu_interval: tuple[float, float]
    chrf_interval: tuple[float, float]
    signature: dict[str, str]


def score_translations(translations: Sequence[str], references: Sequence[str]) -> TranslationScores:
    """Score translations against one reference each.

    The intervals are sacrebleu's: ``RESAMPLES`` draws of as many sentences, its seed 12345; mean ± half the width of
    the middle 95 %.

    Args:
        translations: as the model wrote them, neither lowercased nor tokenised.
        references: in the same order; their script decides how BLEU cuts words.
    """
    values, intervals, signature = {}, {}, {}
    for name, metric in _metrics(references).items():
        score = metric.corpus_score(list(translations), [list(references)], n_bootstrap=RESAMPLES)
        values[name] = float(score.score)
        intervals[name] = (float(score._mean - score._ci), float(score._mean + score._ci))
        signature[name] = str(metric.get_signature())
    return TranslationScores(values["bleu"], values["chrf"], intervals["bleu"], intervals["chrf"], signature)


def bleu_and_chrf(translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The two scores alone, for looks on the way; arguments as in ``score_translations``."""
    return {
        name: float(metric.corpus_score(list(translations), [list(references)]).score)
        for name, metric in _metrics(references).items()
    }


def _metrics(references: Sequence[str]) -> dict[str, Any]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    tokenize = TOKENIZERS.get(language_by_script(" ".join(references)), "13a")
    return {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF()}


class Memory:
    """The baseline that understands nothing: the translation of the most similar training source.

    Similarity is the F1 of character 1- to 3-grams, counted with repetition; the first of equals wins.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self._targets = list(targets)
        self._sizes: list[int] = []
        self._holders: dict[str, list[tuple[int, int]]] = defaultdict(list)  # gram → (source, times)
        for place, source in enumerate(sources):
            grams = _grams(source)
            self._sizes.append(grams.total())
            for gram, times in grams.items():
                self._holders[gram].append((place, times))

    def translate(self, source: str) -> str:
        """The target of the nearest source; empty where no character is shared with any."""
        grams = _grams(source)
        shared: Counter[int] = Counter()
        for gram, times in grams.items():
            for place, known in self._holders.get(gram, ()):
                shared[place] += min(times, known)
        if not shared:
            return ""
        size = grams.total()
        return self._targets[min(shared, key=lambda place: (-shared[place] / (size + self._sizes[place]), place))]


def _grams(text: str) -> Counter[str]:
    return Counter(text[i : i + n] for n in GRAMS for i in range(len(text) - n + 1))

"""Changed copies of training texts: words or Han pieces left out, swapped, or replaced by ones about as frequent.

No thesaurus and no model: noise of the right script. A change is a pure function of (seed, epoch, row), labels are
never touched, and negations stay where they are, since without them a text says the opposite.
"""

import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from hepta.data.permutation import key_of

SHARE = 0.1  # of a text's units changed, at least one
REACH = 0.05  # of the vocabulary, to either side in order of frequency: where replacements come from
HAN_PIECE = 2  # characters of Han changed as one
_HAN = "\u3400-\u9fff\uf900-\ufaff"
_PIECES = re.compile(f"[{_HAN}]{{1,{HAN_PIECE}}}|(?:(?![{_HAN}])\\w)+(?:['’]\\w+)?|\\s+|[^\\w\\s]")
NEGATIONS = {"not", "no", "never", "none", "nothing", "neither", "nor", "without", "hardly", "cannot"}
HAN_NEGATIONS = "不没無无非未别勿莫"


class Augmenter:
    """Changes texts by the vocabulary of the training texts.

    Args:
        texts: of the training split only.
        seed: another seed is another change of each row in each epoch.
    """

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        self.seed = seed
        counts = Counter(piece for text in texts for piece in _PIECES.findall(text) if _is_unit(piece))
        self._ranked: dict[str, list[str]] = {"han": [], "words": []}
        for piece, _ in sorted(counts.items(), key=lambda item: (item[1], item[0])):
            self._ranked[_script(piece)].append(piece)
        self._rank = {piece: rank for ranked in self._ranked.values() for rank, piece in enumerate(ranked)}

    def change(self, text: str, epoch: int, row: int) -> str:
        """A changed copy; the text itself where nothing in it can be changed."""
        draw = random.Random(key_of("augment", self.seed, epoch, row))
        pieces = _PIECES.findall(text)
        for _ in range(max(1, round(SHARE * sum(map(_is_unit, pieces))))):
            places = [i for i, piece in enumerate(pieces) if _is_unit(piece)]
            if len(places) < 2:
                break
            self._change_one(pieces, places, draw)
        return "".join(pieces).strip()

    def _change_one(self, pieces: list[str], places: list[int], draw: random.Random) -> None:
        kind = draw.choice(("leave out", "swap", "replace"))
        turn = draw.randrange(len(places))
        place = places[turn]
        if kind == "swap":
            other = places[turn + 1] if turn + 1 < len(places) else places[turn - 1]
            pieces[place], pieces[other] = pieces[other], pieces[place]
        elif kind == "replace":
            pieces[place] = self._similar(pieces[place], draw)
        else:
            following = pieces[place + 1] if place + 1 < len(pieces) else ""
            del pieces[place : place + 2 if following.isspace() else place + 1]

    def _similar(self, piece: str, draw: random.Random) -> str:
        """Another unit of the same script, about as frequent."""
        ranked = self._ranked[_script(piece)]
        if len(ranked) < 2:
            return piece
        rank = self._rank.get(piece, bisect_left(ranked, piece) % len(ranked))
        reach = max(3, int(REACH * len(ranked)))
        low, high = max(0, rank - reach), min(len(ranked) - 1, rank + reach)
        other = draw.randint(low, high - 1)
        return ranked[other if other < rank else other + 1]


def _script(piece: str) -> str:
    return "han" if re.match(f"[{_HAN}]", piece) else "words"


def _is_unit(piece: str) -> bool:
    """Whether a piece may be changed: a word or Han piece that is no negation."""
    if not (piece[0].isalnum() or piece[0] == "_"):
        return False
    folded = piece.casefold()
    negated = folded in NEGATIONS or folded.endswith(("n't", "n’t")) or any(c in HAN_NEGATIONS for c in piece)
    return not negated

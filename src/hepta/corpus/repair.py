"""Unicode repair that leaves typography alone: mojibake is mended, ，。“” and full-width letters stay as they are."""

import re
from functools import cache
from typing import Any

# Byte pairs of UTF-8 read as Latin-1 or cp1252; clean text almost never holds them, so ftfy is rarely called.
_MOJIBAKE = re.compile(
    "[\u00c2-\u00c5\u00c8-\u00cb\u00cf-\u00d1\u00d0][\u0080-\u00bf]"  # two bytes: Ã© Â°
    "|[\u00e2-\u00ef][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
    "\u2013\u2014\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"  # three bytes: â€™ ä½
    "|\u00f0\u0178"  # four bytes: ðŸ (emoji)
    "|\u00c3[\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2018-\u201e\u2020-\u2022\u2026\u20ac\u2122]"
    "|[\u0080-\u009f]"  # C1 control characters have no place in text
)
_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]|\r\n?")


@cache
def _ftfy() -> tuple[Any, Any]:
    import ftfy

    config = ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    return ftfy.fix_text, config


def repair(text: str) -> tuple[str, bool]:
    """Mend mojibake, turn CRLF into LF, drop control characters and byte order marks.

    Returns:
        the text, and whether anything was changed.
    """
    mended = text
    if not text.isascii() and _MOJIBAKE.search(text):
        fix, config = _ftfy()
        mended = fix(text, config)
    if _CONTROLS.search(mended):
        mended = _CONTROLS.sub(lambda found: "\n" if found[0][0] == "\r" else "", mended)
    return mended, mended != text

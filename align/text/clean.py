"""The caption cleaning that text-to-image generators with T5 were trained under, LlamaGen's among them.

It began with DeepFloyd IF and is meant for web captions: links, markup, file names and shop phrases go, punctuation
becomes plain. A generator should read captions as it did in training, so this gives what those pipelines give, quirks
included: `+` is a space (captions are unquoted like a URL's query), the end of a sentence that runs on as in
"mat.it was" reads as a host name, and 6 digits or more vanish.
"""

from __future__ import annotations

import html
import re
import urllib.parse
import warnings
from functools import lru_cache

_HOST = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_EXTENSION = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"

# in order; each is (what is found, what takes its place)
_LINKS = (
    ("<person>", "person"),
    # a scheme by itself, then the host; what follows a host stays up to the next word
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),
)
_MARKS = (
    (r"@\w+\b", ""),  # nicknames
    (
        r"[\u31c0-\u9fff]+",
        "",
    ),  # CJK strokes, enclosed letters, compatibility forms, ideographs, and Yijing between them
    # every kind of dash; a run of them is one
    (
        "[-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),  # escapes that were escaped twice
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+\Z", ""),  # "3:21 ", the end of an article's id
    (r"\\n", " "),  # a line break written out
    (r"#\d{1,3}\b", ""),  # "#12", but "#1234" may be a year
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"(?<!\S)\S+\.{_EXTENSION}", ""),  # file names, from the start of a word to its last extension
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_JOINED = re.compile("[-_]")  # this-is-a-cat_on_a_mat
_WORDS = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # ids: jc6640, jc6640vc, 6640vc231
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_EXTENSION}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes, with a Latin x, a Cyrillic one or the sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"\A[\"']([\w\W]+)[\"']\Z", r"\1"),  # quotes around it all
    (r"\A['_,\-:;]", ""),
    (r"['_,\-:+]\Z", ""),
    (r"\A\.\S+\Z", ""),
)


def _compiled(rules: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


_LINK_RULES, _MARK_RULES, _WORD_RULES = _compiled(_LINKS), _compiled(_MARKS), _compiled(_WORDS)


@lru_cache(maxsize=1 << 14)  # training asks for the same captions again and again, and each takes about a millisecond
def clean_caption(caption: str) -> str:
    """A caption as LlamaGen's and DeepFloyd IF's T5 pipelines clean it, which is twice over.

    Raises:
        ValueError: the packages ftfy and beautifulsoup4 are not installed.
    """
    return _clean_once(_clean_once(caption))


def _clean_once(caption: str) -> str:
    caption = urllib.parse.unquote_plus(caption).strip().lower()
    caption = _text_of_html(_replace(caption, _LINK_RULES))
    caption = _replace(caption, _MARK_RULES)
    if len(_JOINED.findall(caption)) > 3:
        caption = _JOINED.sub(" ", caption)
    caption = html.unescape(html.unescape(_fix_encoding(caption))).strip()
    return _replace(caption, _WORD_RULES).strip()


def _replace(caption: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        caption = pattern.sub(replacement, caption)
    return caption


def _text_of_html(caption: str) -> str:
    try:
        from bs4 import BeautifulSoup
        from bs4.exceptions import ParserRejectedMarkup
    except ImportError as error:
        raise ValueError(_MISSING.format("beautifulsoup4")) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wonders about captions that look like a file's name
        try:
            return BeautifulSoup(caption, "html.parser").text
        except ParserRejectedMarkup:
            return caption  # no HTML after all


def _fix_encoding(caption: str) -> str:
    try:
        import ftfy
    except ImportError as error:
        raise ValueError(_MISSING.format("ftfy")) from error
    return ftfy.fix_text(caption)


_MISSING = "captions are cleaned by the package {}, which is not installed; try: pip install 'ar-align[t2i]'"

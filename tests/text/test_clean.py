"""Every rule of caption cleaning by a caption that it alone changes; the expected texts follow from the rules by hand."""

from __future__ import annotations

import sys

import pytest

from align.text.clean import clean_caption

RULES = {
    "case and ends": ("  A Cat\t", "a cat"),
    "unquoted like a query": ("a%20cat+on%2Ba+mat", "a cat on a mat"),
    "person": ("<PERSON> on a horse", "person on a horse"),
    "scheme and host": ("a cat https://example.com/cats-1/ asleep", "a cat asleep"),
    "www": ("www.Example.org: a cat", "a cat"),
    "the query stays": ("a cat example.net?q=1", "a cat ?q=1"),
    "not the host of an address": ("a cat from me.com@pets", "a cat from me. com"),
    "a sentence that runs on": ("a cat on a mat.it was red", "a cat on a was red"),
    "html": ("a <b>red</b> cat<br/> &eacute;t&eacute; <!-- nobody -->", "a red cat été"),
    "scripts": ("a cat<script>alert(1)</script>", "a cat"),
    "less than": ("2 < 3 cats", "2 < 3 cats"),
    "no html after all": ("a cat <![zz b", "a cat <! zz b"),
    "nickname": ("a cat by @some_one1 today", "a cat by today"),
    "cjk": ("a 漢字cat ㈱ 㐀 ㇀", "a cat"),
    "kana stay": ("a ねこ cat", "a ねこ cat"),
    "dashes": ("black\u2014and \u2010\u2013white", "black-and -white"),
    "quotes": ("a «red» ‘cat’ is", "a \"red\" 'cat' is"),
    "escaped twice": ("a &amp;quot;red&amp;quot cat &amp;amp; dog", "a red cat ; dog"),
    "ip address": ("a cat 192.168.0.1 x", "a cat x"),
    "article id": ("a cat 3:21 <i></i>", "a cat"),
    "written line break": ("a\\ncat", "a cat"),
    "short numbers with a hash": ("a #1 cat #123", "a cat"),
    "a year with a hash": ("a cat #1999", "a cat 1999"),
    "long numbers": ("a cat #12345 123456 12345", "a cat 12345"),
    "file name": ("a cat img/CAT-01.final.jpg here", "a cat here"),
    "runs of quotes": ('a """\'red cat', 'a "red cat'),
    "dots": ("a cat... asleep", "a cat asleep"),
    "odd punctuation": ("***a [red] {cat}®|½~ (x)", "a red cat x"),
    "a dot by itself": ("a cat . a dog", "a cat a dog"),
    "joined words": ("this-is-my_cute-cat", "this is my cute cat"),
    "few joints stay": ("a black-and-white_cat", "a black-and-white_cat"),
    "mended letters": ("a ﬁne ｃat", "a fine cat"),
    "ids": ("a cat jc6640 jc6640vc 6640vc231 x", "a cat x"),
    "long ids": ("a cat j2d1a2a x", "a cat x"),
    "shipping": ("a cat worldwide free shipping", "a cat"),
    "download": ("a cat free download", "a cat"),
    "click": ("a cat click for more", "a cat"),
    "extensions": ("a cat png images and pdf", "a cat and"),
    "page": ("a cat page 12", "a cat"),
    "sizes": ("a cat 800x600 3.5×2 10х20 x", "a cat x"),
    "colon": ("a cat : red", "a cat: red"),
    "space after punctuation": ("a cat,red.And", "a cat, red. and"),
    "spaces": ("a \n\t cat", "a cat"),
    "quotes around it all": ('"a cat"', "a cat"),
    "ends": (":a cat-", "a cat"),
    "a word after a dot": (".hidden", ""),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("caption", "cleaned"), RULES.values(), ids=RULES.keys())
def test_every_rule(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned


def test_the_rules_are_applied_twice() -> None:
    """Once would leave `<b>cat` and `;cat`."""
    assert clean_caption("&lt;b&gt;cat") == "cat"
    assert clean_caption(":;cat") == "cat"


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["a", "a-", "a.b", "1.", "a1", ".", "'", "<b>", "&amp;", "x "])
def test_a_caption_of_ten_thousand_characters_comes_back(piece: str) -> None:
    """Of shapes that make careless patterns go back over everything, which would take longer than any test may."""
    assert len(clean_caption(piece * (10_000 // len(piece)))) <= 20_000


@pytest.mark.parametrize("package", ["bs4", "ftfy"])
def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"which is not installed; try: pip install 'ar-align\[t2i\]'"):
        clean_caption(f"a caption that no other test cleans, without {package}")

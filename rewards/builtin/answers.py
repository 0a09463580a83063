"""From a chat completion to a number in [0, 1], or to an error that shows what was answered."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

from rewards.builtin.endpoint import SHOWN, EndpointError

YES_OR_NO = ("yes", "no")
# words that answer "how many?", as digits do
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("no", "none", "several", "many"),
)


def read_number(reply: Any, pattern: re.Pattern[str], low: float, high: float) -> float:
    """The last number that the pattern's group finds, from [low, high] to [0, 1]."""
    text = text_of(reply)
    found = pattern.findall(text)
    if not found:
        raise EndpointError(f"the answer has nothing that fits {pattern.pattern!r}: {text!r:.{SHOWN}}")
    try:
        number = float(found[-1])
    except ValueError as error:
        raise EndpointError(f"the answer has {found[-1]!r} where a number should be: {text!r:.{SHOWN}}") from error
    if not low <= number <= high:
        raise EndpointError(f"the answer has {number:g}, which is not from {low:g} to {high:g}: {text!r:.{SHOWN}}")
    return (number - low) / (high - low)


def read_yes_no(reply: Any) -> float:
    """1 or 0, by the first word."""
    text = text_of(reply)
    first = re.search(r"\w+", text)
    word = first.group().casefold() if first else ""
    if word not in ("yes", "no"):
        raise EndpointError(f"the answer begins with neither yes nor no: {text!r:.{SHOWN}}")
    return float(word == "yes")


def read_choice(reply: Any) -> float:
    """Of two images 1 for the first, 0 for the second and 0.5 for neither, by the last of the words FIRST, SECOND, EQUAL."""
    text = text_of(reply)
    found = re.findall(r"\b(FIRST|SECOND|EQUAL)\b", text)
    if not found:
        raise EndpointError(f"the answer has none of FIRST, SECOND and EQUAL: {text!r:.{SHOWN}}")
    return {"FIRST": 1.0, "SECOND": 0.0, "EQUAL": 0.5}[found[-1]]


def read_probability(reply: Any) -> float:
    """P(yes) / (P(yes) + P(no)) of the first token, over all its likeliest spellings (case, spaces around)."""
    chances = _first_tokens(reply)
    yes, no = (sum(chance for token, chance in chances if token == word) for word in ("yes", "no"))
    if yes + no == 0:
        raise EndpointError(
            f"neither yes nor no is among the likeliest first words: {', '.join(token for token, _ in chances)!r:.{SHOWN}}"
        )
    return yes / (yes + no)


def read_chance(reply: Any, answers: Collection[str]) -> float:
    """Probability that the first token is one of the answers, in any spelling (case, spaces around).

    One that is not among the listed tokens is as likely as the least of them at most, and as what they leave: the smaller of
    both is taken. Its true probability may be anything below; 0 would make a geometric mean 0.
    """
    chances = _first_tokens(reply)
    found = [chance for token, chance in chances if token in answers]
    if not found:
        listed = [chance for _, chance in chances]
        found = [min(*listed, 1 - math.fsum(listed))]
    return min(1.0, max(0.0, math.fsum(found)))  # rounded log-probabilities may add up to more than 1


def read_word(reply: Any, answers: Collection[str]) -> float:
    """1 if the first word is one of the answers, else 0. Where they are yes or no, or numbers, the word must be one too."""
    text = text_of(reply)
    first = re.search(r"\w+", text)
    word = first.group().casefold() if first else ""
    if all(answer in YES_OR_NO for answer in answers):
        fits, wanted = word in YES_OR_NO, "yes or no"
    elif any(answer in NUMBERS or answer.isdecimal() for answer in answers):
        fits, wanted = word in NUMBERS or word.isdecimal(), "a number"
    else:
        fits, wanted = bool(word), "a word"
    if not fits:
        raise EndpointError(f"the answer does not begin with {wanted}: {text!r:.{SHOWN}}")
    return float(word in answers)


def _first_tokens(reply: Any) -> list[tuple[str, float]]:
    """The likeliest first tokens, without case and spaces around, and their probabilities."""
    try:
        likeliest = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        chances = [(str(one["token"]).strip().casefold(), math.exp(one["logprob"])) for one in likeliest]
    except (KeyError, IndexError, TypeError) as error:
        raise EndpointError(
            "the server gives no log-probabilities; start it so that it does, or take the answer yes-no (vlm-judge), or the "
            f"score tifa or dpg (vqa). It said {reply!r:.{SHOWN}}"
        ) from error
    if not chances:
        raise EndpointError(f"the server lists no likely first tokens: {reply!r:.{SHOWN}}")
    return chances


def text_of(reply: Any) -> str:
    """What the model said."""
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"the server's answer is no chat completion: {reply!r:.{SHOWN}}") from error
    if not isinstance(text, str):
        raise EndpointError(f"the model said nothing: {reply!r:.{SHOWN}}")
    return text

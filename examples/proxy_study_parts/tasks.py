"""Six families of little tasks, each solved in three styles.

An item is a prompt, the steps of its solution, and its answer. The styles write the same steps in other words
and end alike, ``>answer``, so that the answer can be read out of what a model writes in any style.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

STYLES = ("listed", "told", "answer_first")
LETTERS = "abcdefgh"
ITEMS = 150  # of a family to measure the truth with, and as many others for the proxies


class Item(NamedTuple):
    prompt: str
    steps: tuple[str, ...]
    answer: str


def _letters(rng: random.Random, alphabet: str, least: int, most: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(least, most)))


def reverse(rng: random.Random) -> Item:
    word = _letters(rng, LETTERS, 2, 3)
    return Item(f"rev {word}", tuple(word[::-1]), word[::-1])


def sort(rng: random.Random) -> Item:
    word = _letters(rng, LETTERS, 2, 3)
    return Item(f"srt {word}", tuple(sorted(word)), "".join(sorted(word)))


def successor(rng: random.Random) -> Item:
    """The next letter of each; after the last comes the first."""
    word = _letters(rng, LETTERS, 2, 3)
    following = [LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in word]
    return Item(f"nxt {word}", tuple(a + b for a, b in zip(word, following, strict=True)), "".join(following))


def add(rng: random.Random) -> Item:
    """Two numbers of two digits below 5, which are added without a carry."""
    a, b = _letters(rng, "01234", 2, 2), _letters(rng, "01234", 2, 2)
    sums = [str(int(x) + int(y)) for x, y in zip(a, b, strict=True)]
    steps = tuple(f"{x} {y} {z}" for x, y, z in zip(a, b, sums, strict=True))
    return Item(f"add {a} {b}", steps, "".join(sums))


def count(rng: random.Random) -> Item:
    """How often a letter occurs in a word, counted along."""
    letter, word = rng.choice("abc"), _letters(rng, "abc", 3, 5)
    steps = tuple(f"{other}{word[: place + 1].count(letter)}" for place, other in enumerate(word))
    return Item(f"cnt {letter} {word}", steps, str(word.count(letter)))


def lookup(rng: random.Random) -> Item:
    """The digit behind a letter."""
    letters = rng.sample("abcd", 2)
    digits = [str(rng.randint(0, 9)) for _ in letters]
    wanted = rng.randrange(len(letters))
    pairs = " ".join(a + b for a, b in zip(letters, digits, strict=True))
    return Item(f"get {pairs} {letters[wanted]}", (letters[wanted] + digits[wanted],), digits[wanted])


FAMILIES: dict[str, Callable[[random.Random], Item]] = {
    family.__name__: family for family in (reverse, sort, successor, add, count, lookup)
}


def solution(item: Item, style: str) -> str:
    """What follows the prompt, to the end of the line."""
    if style == "listed":
        return f":{','.join(item.steps)}>{item.answer}\n"
    if style == "told":
        return f" is {' then '.join(item.steps)} so >{item.answer}\n"
    return f"? {item.answer}! for {';'.join(item.steps)}>{item.answer}\n"


def answer_of(written: str) -> str | None:
    """The answer in what a model wrote after a prompt; None without one."""
    line, end, _ = written.partition("\n")
    _, mark, answer = line.partition(">")
    return answer if mark and end else None


def held_out(seed: int) -> dict[str, tuple[list[Item], list[Item]]]:
    """Of each family the items of the truth and those of the proxies; no prompt occurs twice."""
    found = {}
    for name, family in FAMILIES.items():
        rng = random.Random(f"{seed} {name}")
        items: dict[str, Item] = {}
        while len(items) < 2 * ITEMS:
            item = family(rng)
            items[item.prompt] = item
        ordered = list(items.values())
        found[name] = (ordered[:ITEMS], ordered[ITEMS:])
    return found

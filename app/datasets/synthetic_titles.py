"""Titles of movies that do not exist, for ``synthetic``; nothing here knows ratings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_FIRST_WORDS = (
    "Silent Broken Golden Crimson Hidden Distant Frozen Burning Hollow Velvet Endless Forgotten Midnight Emerald "
    "Restless Savage Gentle Electric Wicked Lonely Painted Paper Iron Glass Marble Wandering Secret Shattered "
    "Sleeping Stolen Borrowed Perfect Reckless Scarlet Amber Copper Winter Summer Bitter Tender Violent Quiet "
    "Brave Crooked Faded Final Foreign Haunted Hungry Invisible Jagged Last Little Lost Northern Open Pale Rising "
    "Second Strange Sunken Third Twisted Wild"
)
_SECOND_WORDS = (
    "Harbour River Mountain Garden Letter Mirror Shadow Station Orchard Road Lantern Kingdom Promise Stranger "
    "Bridge Empire Voyage Island Forest Signal Detective Circus Dancer Soldier Painter Sister Brother Daughter "
    "Hunter Captain Witness Gambler Prophet Machine Planet Comet Desert Highway Motel Theatre Violin Piano "
    "Carnival Cathedral Castle Lighthouse Railway Market Village City Bakery Autumn Storm Thunder Echo Dream "
    "Memory Fortune Treasure Conspiracy Wedding Funeral Holiday Affair"
)
_PATTERNS = ("The {0} {1}", "{0} {1}", "My {0} {1}", "The {1} of {0} Street")


def make_titles(rng: np.random.Generator, year: NDArray[Any]) -> list[str]:
    """Invent a unique title per movie; when the words are used up, sequels are numbered.

    Parameters
    ----------
    rng : Generator
    year : ndarray of shape (n_movies,), int
        The year of release, which ends the title as in MovieLens: "The Silent Harbour (1990)".
    """
    first_words, second_words = _FIRST_WORDS.split(), _SECOND_WORDS.split()
    n_pairs = len(first_words) * len(second_words)
    n_plain = n_pairs * len(_PATTERNS)
    order = np.concatenate([part * n_plain + rng.permutation(n_plain) for part in range(len(year) // n_plain + 1)])
    titles = []
    for number, released in zip(order[: len(year)].tolist(), year.tolist(), strict=True):
        part, plain = divmod(number, n_plain)
        pattern, pair = divmod(plain, n_pairs)
        first, second = divmod(pair, len(second_words))
        name = _PATTERNS[pattern].format(first_words[first], second_words[second])
        titles.append(f"{name} {part + 1} ({released})" if part else f"{name} ({released})")
    return titles

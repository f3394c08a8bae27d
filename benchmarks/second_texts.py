"""How clients of the second generator vary texts: they edit words, and the service embeds what comes out.

The counterpart of `benchmarks.texts.TextTools` for `benchmarks.second_generator`, written apart from it: edits are a small language
(keep, drop, put in front, exchange, cut), and a kind is a rule that writes edits.

Rule: a kind draws texts of its client's pool only, and never looks at answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.texts import Corpus, Words
from detector.simulation.domain import Generate, HonestPools, Rows

Edit = Callable[[Words, int, np.random.Generator], Words]
"""(text, how often it was asked, rng) → the text as it is sent."""


class EditingClients:
    """Clients of a service of texts; texts are those of their pool."""

    def __init__(self, known: Corpus, texts: Sequence[Words]) -> None:
        self.known, self.texts = known, texts
        makers: dict[str, Callable[[np.random.Generator], Edit]] = {
            "form": self.form,
            "mobile": self.mobile,
            "nightly": self.nightly,
            "ab_replay": self.ab_replay,
            "crawler": self.crawler,
            "imputing": self.imputing,
            "augmenting": self.augmenting,
            "contract": self.contract,
            "recourse": self.recourse,
            "units": self.units,
        }
        self.kinds: dict[str, Generate] = {kind: self._playing(maker) for kind, maker in makers.items()}

    def _playing(self, maker: Callable[[np.random.Generator], Edit]) -> Generate:
        def play(pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
            edit = maker(rng)
            most = len(self.texts)
            own = rng.permutation(most)[: int(np.clip(rng.pareto(0.9) * 30 + 8, 8, most))]
            times = int(rng.integers(1, 9))
            asked = [
                (int(own[(i // times) % len(own)]), i % times + times * (i // (times * len(own)))) for i in range(n)
            ]
            return self._emit(pools, [edit(list(self.texts[k]), again, rng) for k, again in asked])

        return play

    def form(self, rng: np.random.Generator) -> Edit:
        """The same greeting before every text, the same close behind it."""
        before, behind = self._some(int(rng.integers(1, 4)), rng), self._some(int(rng.integers(0, 3)), rng)
        return lambda text, again, _: [*before, *text, *behind]

    def mobile(self, rng: np.random.Generator) -> Edit:
        """Typed on a telephone: a word in fifteen is lost; sent again as it was."""
        kept = {i: rng.random(400) > 1 / 15 for i in range(7)}
        return lambda text, again, _: [w for w, keep in zip(text, kept[len(text) % 7], strict=False) if keep]

    def nightly(self, rng: np.random.Generator) -> Edit:
        """The same documents every night, with a word of the season that changes slowly."""
        season = self._some(40, rng)
        return lambda text, again, r: [*text, season[min(again // 3, 39)]] if r.random() < 0.3 else text

    def ab_replay(self, rng: np.random.Generator) -> Edit:
        """A log twice: as it was, and with one more word."""
        flag = self._some(1, rng)
        return lambda text, again, _: [*flag, *text] if again % 2 else text

    def crawler(self, rng: np.random.Generator) -> Edit:
        """Pages with a counter of words that nobody reads: a word of a list, the next one each time."""
        counter, seen = self._some(300, rng), [0]

        def edit(text: Words, again: int, _: np.random.Generator) -> Words:
            seen[0] += 1
            return [counter[seen[0] // 8 % 300], counter[seen[0] % 8], *text]

        return edit

    def imputing(self, rng: np.random.Generator) -> Edit:
        """A field that holds a fixed number of words: longer texts are cut."""
        most = int(rng.integers(4, 12))
        return lambda text, again, _: text[:most]

    def augmenting(self, rng: np.random.Generator) -> Edit:
        """Each text some times, with a word left out, for a mean of the answers."""

        def edit(text: Words, again: int, r: np.random.Generator) -> Words:
            gone = int(r.integers(len(text))) if again else -1
            return [word for i, word in enumerate(text) if i != gone]

        return edit

    def contract(self, rng: np.random.Generator) -> Edit:
        """Tests of the interface: nothing, one word, the text twice, in capitals for nobody, back to front; the same in every release."""
        forms: list[Callable[[Words], Words]] = [
            lambda t: [],
            lambda t: t[:1],
            lambda t: t + t,
            lambda t: t[::-1],
            lambda t: t[:1] * 30,
            lambda t: t,
        ]
        return lambda text, again, _: forms[again % len(forms)](text)

    def recourse(self, rng: np.random.Generator) -> Edit:
        """A writer who looks for better words: one or two exchanged each time."""

        def edit(text: Words, again: int, r: np.random.Generator) -> Words:
            for _ in range(min(again, 2)):
                text[int(r.integers(len(text)))] = self._some(1, r)[0]
            return text

        return edit

    def units(self, rng: np.random.Generator) -> Edit:
        """Another language for a while: most words are not known."""
        return lambda text, again, r: [w for w in text if r.random() < 0.35]

    def _some(self, count: int, rng: np.random.Generator) -> Words:
        return [self.known.vocabulary[i] for i in rng.integers(0, len(self.known.vocabulary), size=count)]

    def _emit(self, pools: HonestPools, texts: Sequence[Words]) -> Rows:
        return pools.domain.emit(self.known.embed([" ".join(words) for words in texts]))

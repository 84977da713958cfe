"""Pieces learned from words: what the trainer merges, less what exists, and what the tokenizer would never read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from graftkit.checkpoint.tokenizer.files import TokenizerFiles, read_tokenizer
from graftkit.checkpoint.tokenizer.merges import Merge, learn_merges
from graftkit.checkpoint.tokenizer.pieces import Piece, Pieces, with_pieces
from graftkit.checkpoint.tokenizer.words import BYTE, Word
from graftkit.errors import InputRejected, few, plural, printable

#: The models that pieces can be put behind those of.
MODELS = ("BPE", "WordPiece", "Unigram")


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned.

    Attributes:
        pieces: in the order in which the trainer made them.
        existing: how many were left out because a token is called so already.
        unread: how many were left out because too few of the words are read as them once all are there, or, with merges,
            because they are made of such.

    """

    pieces: Pieces
    existing: int
    unread: int


def learn_pieces(tokenizer: TokenizerFiles, words: Mapping[Word, int], size: int, min_frequency: int) -> Learned:
    """Learn ``size`` pieces, or as many as the words give.

    Raises:
        InputRejected: the tokenizer's model is of another kind, or a new piece could make known text unknown.
    """
    check_model(tokenizer)
    count = size + size // 8 + 16
    merges = learn_merges(words, count, min_frequency)
    unread: frozenset[Word] = frozenset()
    while True:
        choice = _Choice(tokenizer, size, unread)
        choice.take(merges)
        if len(choice.pieces) < size and len(merges) >= count:
            count *= 2
            merges = learn_merges(words, count, min_frequency)
            continue
        found = choice.found()
        never = [piece.parts for piece in too_rarely_read(tokenizer, found, words, min_frequency)]
        if not never:
            return Learned(found, len(choice.existing), len(choice.unread))
        unread = unread.union(never)


@dataclass
class _Choice:
    """The first ``size`` pieces that merges make, without those in ``left_out`` and, in BPE, whatever is made of one left out."""

    tokenizer: TokenizerFiles
    size: int
    left_out: frozenset[Word]
    pieces: dict[Word, Piece] = field(default_factory=dict)
    merges: list[tuple[str, str]] = field(default_factory=list)
    existing: set[Word] = field(default_factory=set)
    unread: set[Word] = field(default_factory=set)
    _contents: set[str] = field(default_factory=set)

    def take(self, merges: Sequence[Merge]) -> None:
        """Take the merges one after the other until there are enough pieces."""
        for left, right in merges:
            if len(self.pieces) == self.size:
                return
            whole = left + right
            if whole in self.left_out or (self._merges and not (self._is_there(left) and self._is_there(right))):
                self.unread.add(whole)
            elif whole in self.pieces or self._is_new(whole):
                self.merges.append((spelled(self.tokenizer, left), spelled(self.tokenizer, right)))

    def found(self) -> Pieces:
        """What was taken."""
        return Pieces(tuple(self.pieces.values()), tuple(self.merges) if self._merges else ())

    @property
    def _merges(self) -> bool:
        return self.tokenizer.model_type == "BPE"

    def _is_there(self, side: Word) -> bool:
        return len(side) == 1 or side in self.pieces

    def _is_new(self, whole: Word) -> bool:
        content = spelled(self.tokenizer, whole)
        if content in self.tokenizer.ids or content in self._contents:
            self.existing.add(whole)
            return False
        self.pieces[whole] = Piece(content, whole)
        self._contents.add(content)
        return True


def spelled(tokenizer: TokenizerFiles, word: Word) -> str:
    """The piece that stands for ``word``: its parts one behind the other, the mark of continuing ones only in front."""
    first, *others = (tokenizer.tokens[index] for index in word)
    return first + "".join(part.removeprefix(continuing(tokenizer)) for part in others)


def continuing(tokenizer: TokenizerFiles) -> str:
    """What stands before a piece that continues a word, such as ``##``; empty where nothing does."""
    return str(tokenizer.document["model"].get("continuing_subword_prefix") or "")


def too_rarely_read(
    tokenizer: TokenizerFiles, pieces: Pieces, words: Mapping[Word, int], min_frequency: int
) -> list[Piece]:
    """Those of ``pieces`` that the model with all of them does not read alone; without merges also those of too few words.

    A piece on the way to a longer one is needed only where merges lead from one to the other. A BPE that looks a whole word up
    before it merges is asked without: then a piece is read inside longer words too.
    """
    document = with_pieces(tokenizer, pieces)
    model = {**document["model"], **({"ignore_merges": False} if "ignore_merges" in document["model"] else {})}
    after = read_tokenizer({"tokenizer.json": {**document, "model": model}})
    ids, prefix = pieces.ids(tokenizer), continuing(tokenizer)
    letters = [token for token in tokenizer.ids if len(token) == 1] if prefix else []
    found = {
        content
        for content, index in ids.items()
        if not any(after.pieces_of(word)[-1:] == [index] for word in words_with(content, prefix, letters))
    }
    if tokenizer.model_type != "BPE":
        found |= {
            content for content, times in count_reads(tokenizer, after, ids, words).items() if times < min_frequency
        }
    return [piece for piece in pieces.listed if piece.content in found]


def count_reads(
    before: TokenizerFiles, after: TokenizerFiles, ids: Mapping[str, int], words: Mapping[Word, int]
) -> dict[str, int]:
    """How often ``after`` reads each piece of ``ids`` in the words of ``before``, each of which stands so many times in the texts.

    A word is split alone as it is inside its text: no piece crosses its borders.
    """
    found: Counter[int] = Counter()
    for word, times in words.items():
        for index in after.pieces_of(spelled(before, word).removeprefix(continuing(before))):
            found[index] += times
    return {content: found[index] for content, index in ids.items()}


def words_with(content: str, prefix: str, letters: Iterable[str]) -> Iterator[str]:
    """Words that end with a piece: its own text, behind each of ``letters`` if ``prefix`` says that it continues a word."""
    if prefix and content.startswith(prefix):
        yield from (letter + content.removeprefix(prefix) for letter in letters)
    else:
        yield content


def check_model(tokenizer: TokenizerFiles) -> None:
    """Refuse a model that new pieces cannot be put behind.

    A WordPiece or Unigram model must have each character of its pieces as a piece: else a new piece that ends before one, or the
    score of an unknown character, which is counted from the lowest of all, would make text unknown that is not.

    Raises:
        InputRejected: see above.
    """
    if tokenizer.model_type not in MODELS:
        raise InputRejected(
            f"tokenizer.json: model: is {printable(tokenizer.model_type)}; pieces are learned for {', '.join(MODELS)}"
        )
    if tokenizer.model_type == "BPE":
        return
    lacking = sorted(_lacking(tokenizer, {entry.content for entry in tokenizer.added}))
    if lacking:
        have = "has no piece" if len(lacking) == 1 else "have no piece"
        raise InputRejected(
            f"tokenizer.json: model: {plural(len(lacking), 'character')} of its pieces {have} of their own:"
            f" {few(lacking)}; behind a new piece, text with one could become unknown"
        )


def _lacking(tokenizer: TokenizerFiles, added: Collection[str]) -> set[str]:
    prefix, ids = continuing(tokenizer), tokenizer.ids
    found = set()
    for token in ids:
        if token not in added and not BYTE.fullmatch(token):
            begins = not (prefix and token.startswith(prefix))
            rest = token.removeprefix(prefix) if not begins else token[1:] if prefix else token
            found |= {prefix + character for character in rest}
    return {piece for piece in found if piece not in ids}

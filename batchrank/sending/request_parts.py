"""Parts of a request plan that was not answered as a whole, and which row lacks what of it."""

from collections.abc import Sequence

from batchrank.records import Share, Slot

TRIES_OF_A_PART = 3
"""Tries of a part that fails for another reason than the whole, or is a single document."""


class Refused:
    """A request that was too large, and how many of its halves were not."""

    def __init__(self, documents: int, size: int) -> None:
        self.documents = documents
        self.bytes = size
        self.accepted = 0


class Part:
    """Some documents of a plan, to be asked for in one request. `whole` is what they were taken
    from when the endpoint blamed one document: should it refuse the others too, it was wrong.
    `half_of` is the request that was too large, if these are a half of it. `reason`: why there is
    no score for the blamed document, or why these were not asked for as a whole. `tries`: so many
    failures settle it; `is_doubtful` once that were fewer than it takes to be sure.
    """

    def __init__(
        self,
        documents: Sequence[int],
        *,
        whole: Sequence[int] | None = None,
        blamed: int | None = None,
        reason: str = "",
        half_of: Refused | None = None,
        tries: int = 0,
    ) -> None:
        self.documents = documents
        self.whole = whole
        self.blamed = blamed
        self.reason = reason
        self.half_of = half_of
        self.tries = tries
        self.is_doubtful = False

    def __len__(self) -> int:
        return len(self.whole or self.documents)

    def without(self, index: int, reason: str) -> "Part":
        others = [document for document in self.documents if document != self.documents[index]]
        return Part(others, whole=self.documents, blamed=self.documents[index], reason=reason)

    def once_more(self) -> "Part":
        """The same documents, to be tried until that settles them."""
        return Part(self.documents, reason=self.reason, tries=TRIES_OF_A_PART)

    def is_settled(self, failures: int, reason: str) -> bool:
        """Whether so many failures, the last for this reason, settle it. It `is_doubtful` where
        more tries would be needed to be sure.
        """
        is_certain = not self.reason or (reason == self.reason and len(self.documents) > 1)
        self.is_doubtful = not is_certain and failures < TRIES_OF_A_PART
        return is_certain or failures >= self.tries

    def halves(self, refused: Refused | None, reason: str) -> "list[Part]":
        documents = self.whole or self.documents
        middle = (len(documents) + 1) // 2
        return [
            Part(half, reason=reason, half_of=refused)
            for half in (documents[:middle], documents[middle:])
        ]


Blamed = tuple[Sequence[int], str]


def share_of_slot(slot: Slot, answer_of: Sequence[int], blamed: Sequence[Blamed]) -> Share:
    """What a row has of a request that was not answered as a whole: documents are named by the
    first of the row's candidates that they stand for.
    """
    notes = []
    for documents, reason in blamed:
        own = set(slot.documents).intersection(documents)
        if own:
            names = [slot.positions[slot.documents.index(document)] for document in own]
            notes.append(f"{_listed(names)}: {reason}")
    answers = {answer_of[document] for document in slot.documents} - {-1}
    return Share(sorted(answers), "; ".join(notes) or None)


def _listed(candidates: Sequence[int]) -> str:
    if len(candidates) == 1:
        return f"document {candidates[0]}"
    return f"documents {min(candidates)} to {max(candidates)}"

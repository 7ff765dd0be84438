"""What texts are compared by: hashes of their tokens, two parity signatures, and a SimHash."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from echoray.data.dedup.kernels import sign

# Words and numbers whole (2.5 is one token), everything that is written without spaces by character.
_UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|\d+(?:[.,]\d+)*|[^\W\d_{_UNSPACED}]+")


def tokenize(text: str) -> list[str]:
    """Lower-cased tokens (NFKC): CJK by character, other scripts by word, numbers whole; no punctuation."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


@lru_cache(maxsize=1 << 17)
def token_hash(token: str) -> int:
    """64 bits of BLAKE2b: the same in every process. Tokens of one hash count as one token."""
    return int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Fingerprints:
    """Columns of B texts with T tokens in all, whose tokens lie between two of the B + 1 offsets."""

    hashes_T: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    coarse_B4: NDArray[np.uint64]
    fine_B8: NDArray[np.uint64]
    simhash_B: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.simhash_B)

    def tokens(self, row: int) -> NDArray[np.uint64]:
        """The token hashes of one text."""
        return self.hashes_T[self.offsets[row] : self.offsets[row + 1]]


def fingerprints(texts: Sequence[str]) -> Fingerprints:
    """The fingerprints of texts."""
    tokenized = [[token_hash(token) for token in tokenize(text)] for text in texts]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(one) for one in tokenized], out=offsets[1:])
    hashes = np.fromiter((one for text in tokenized for one in text), np.uint64, int(offsets[-1]))
    return of_tokens(hashes, offsets)


def of_tokens(hashes_T: NDArray[np.uint64], offsets: NDArray[np.int64]) -> Fingerprints:
    """The fingerprints of texts that are tokenized and hashed."""
    count = len(offsets) - 1
    coarse, fine = np.zeros((count, 4), np.uint64), np.zeros((count, 8), np.uint64)
    simhash = np.zeros(count, np.uint64)
    sign(hashes_T, offsets, coarse, fine, simhash)
    return Fingerprints(hashes_T, offsets, coarse, fine, simhash)

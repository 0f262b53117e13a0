"""The doctor's look at the encoders that collections name.

Takes: the catalog's records, settings. Gives: level, message and advice for each encoder. Owns: what is asked of a remote one.
Never: loads weights; a file's bytes are hashed, a server encodes one word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

from contracts.collection import CollectionRecord
from contracts.encoder import EmbeddingSpace
from contracts.errors import HeadwaterError
from contracts.settings import Settings
from embedding.open_encoder import INSTALL_HINT, describe_space, open_encoder

Found = tuple[Literal["ok", "warn", "fail"], str, str]
_WORD = "word"


def encoder_findings(records: Sequence[CollectionRecord], settings: Settings) -> Iterator[Found]:
    """Look at each distinct encoder once: whether it is there and makes the vectors that its collections hold.

    Parameters
    ----------
    records : Sequence of CollectionRecord
        All collections.
    settings : Settings
        What the roles would start with.
    """
    spaces: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # encoder -> space id -> collections
    for record in records:
        for field in (field for index in record.indexes for field in index.fields):
            if field.encoder is not None:
                spaces[field.encoder][field.space_id].add(record.name)
    for name, wanted in sorted(spaces.items()):
        named = ", ".join(sorted(set().union(*wanted.values())))
        try:
            found = _space(name, settings)
        except HeadwaterError as error:
            level: Literal["warn", "fail"] = "warn" if error.hint == INSTALL_HINT else "fail"  # a node may do without what embeds
            yield level, f"{name}, of {named}: {error.message}", error.hint
            continue
        strange = sorted(set().union(*(names for space_id, names in wanted.items() if space_id != found.space_id)))
        if strange:
            advice = "install the encoder that they were created with, or create new collections"
            yield "fail", f"{name} makes vectors in space {found.space_id} here, those of {', '.join(strange)} are in another", advice
        else:
            yield "ok", f"{name}, of {named}: space {found.space_id}", ""


def _space(name: str, settings: Settings) -> EmbeddingSpace:
    if not name.startswith("remote:"):
        return describe_space(name, settings)
    encoder = open_encoder(name, settings)
    encoder.encode_texts([_WORD])  # is the server there, does it take our key, is it still the model that was there?
    return encoder.space

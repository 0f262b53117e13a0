"""Generations of an index: the trained quantizers of its fields, one object each.

Takes: an object store and index keys. Gives: the generation that counts, whoever trained it. Owns: the race of trainers.
Never: replaces a generation; who comes second gets the first one's.
"""

from __future__ import annotations

from backends.catalog.objects import put_settled
from contracts.collection import FieldRecord
from contracts.errors import CorruptError
from contracts.generation import Generation, decode_generation, encode_generation
from contracts.object_keys import IndexKeys, parse_key
from contracts.store import ObjectStore

FIRST_GENERATION = 1


def publish_generation(store: ObjectStore, keys: IndexKeys, field: FieldRecord, trained: Generation) -> Generation:
    """Store a trained generation under its number; the stored one of that number, which is another trainer's where one was faster.

    Raises
    ------
    UnavailableError
        The store does not say how it ended; call again with the same one.
    CorruptError
        What is stored there is no generation of this field.
    """
    key = keys.generation(trained.number, trained.field_name)
    if put_settled(store, key, encode_generation(trained)):
        return trained
    stored = load_generation(store, keys, field, trained.number)
    if stored is None:
        raise CorruptError(f"object {key} was there and is gone", hint="check the object store; generations are never deleted")
    return stored


def load_generation(store: ObjectStore, keys: IndexKeys, field: FieldRecord, number: int) -> Generation | None:
    """The stored generation of that number, or None.

    Raises
    ------
    CorruptError
        Its bytes differ from their hashes, or it was trained for another field, space, metric or dimension.
    """
    key = keys.generation(number, field.name)
    found = store.get(key)
    if found is None:
        return None
    generation = decode_generation(found.data, key)
    said = (generation.field_name, generation.number, generation.space_id, generation.metric, generation.centroids.shape[1])
    if said != (field.name, number, field.space_id, field.metric, field.dimension):
        raise CorruptError(f"{key}: it was trained for {said}, the index's field {field.name} is another")
    return generation


def newest_generations(store: ObjectStore, keys: IndexKeys) -> dict[str, int]:
    """Highest stored generation number of each field that has one."""
    newest: dict[str, int] = {}
    for info in store.list(keys.generations_prefix):
        parsed = parse_key(info.key)
        if parsed is not None and parsed.kind == "generation":
            name = parsed.fields["field"]
            newest[name] = max(newest.get(name, 0), int(parsed.fields["generation"]))
    return newest

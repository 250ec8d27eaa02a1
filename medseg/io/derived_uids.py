"""Identifiers that are made from what they identify, so that the same work gives the same ones.

A result that is made again, by a run that was interrupted or on another machine, then has the
identifiers of the first, and an archive that holds it already recognises it.

Source: DICOM PS3.5 B.2 (UUID derived UIDs); RFC 9562, section 5.5 (name-based UUIDs).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

__all__ = ["derived_uid"]

_NAMESPACE = uuid.UUID("6f1d2f3a-5d0a-5c0b-9d5e-6d6564736567")  # made once, for medseg alone


def derived_uid(kind: str, parts: Iterable[str]) -> str:
    """A UID under the root 2.25 that another content cannot have.

    Args:
        kind: What it identifies, so that a series and its only instance differ.
        parts: What is identified, in an order that is always the same; hashes stand for long ones.
    """
    name = "\n".join(f"{len(part)} {part}" for part in (kind, *parts))
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"

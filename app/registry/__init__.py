"""Versions of the model: publish one atomically, know which one is active, go to another and back.

``artifacts.write_version ─▶ publish ─▶ CURRENT ─▶ serving``. A version is immutable once published; only the pointer
CURRENT moves, in one rename, and HISTORY records each move. Whatever instant a process dies at, CURRENT names a
complete version. Whoever changes anything holds the lock of the folder.
"""

from __future__ import annotations

from app.registry.listing import Entry, current_folder, find, load_current, load_intact, verify, versions
from app.registry.pointer import CURRENT, HISTORY, VERSIONS, current, earlier, once_active, readable_current
from app.registry.publishing import KEEP, Published, prepare, prune, publish
from app.registry.switching import Switched, activate, rollback

__all__ = [
    "CURRENT",
    "HISTORY",
    "KEEP",
    "VERSIONS",
    "Entry",
    "Published",
    "Switched",
    "activate",
    "current",
    "current_folder",
    "earlier",
    "find",
    "load_current",
    "load_intact",
    "once_active",
    "prepare",
    "prune",
    "publish",
    "readable_current",
    "rollback",
    "verify",
    "versions",
]

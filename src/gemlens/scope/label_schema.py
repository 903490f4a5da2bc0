"""The file that labels live in: SQLite with FTS5, from the standard library; one file, no server.

    dictionaries   exact path, how it was called, width, Neuronpedia's id
    labels         several a feature; ``same`` is a hash of who said what, so that nothing is stored twice
    scores         how well a label holds, one row a method
    facts          what Neuronpedia says of a feature besides; a row also means that it was asked
    done           parts of a download that are in, each committed together with its labels
    labels_text    full-text index over the words of ``labels``, and over ``d7`` for the dictionary of row 7, so that a
                   search inside one dictionary never walks through the others

Write-ahead logging lets readers read while somebody writes; writers wait for one another.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gemlens.errors import GemlensError, InputError, OutputError

__all__ = ["SCHEMA", "connect", "is_store", "told"]

SCHEMA = 1
"""Raised whenever an older gemlens could not read the file any more."""

_APPLICATION = 0x67656D6C  # "geml": tells our file from any other SQLite
_PATIENCE = 60.0
_TABLES = """
CREATE TABLE dictionaries (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, release TEXT NOT NULL, sae_id TEXT NOT NULL,
    neuronpedia TEXT, width INTEGER, downloaded TEXT);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY, dictionary INTEGER NOT NULL REFERENCES dictionaries(id), feature INTEGER NOT NULL,
    same INTEGER NOT NULL, text TEXT NOT NULL, source TEXT NOT NULL, method TEXT, model TEXT, confidence TEXT,
    polysemantic INTEGER, position TEXT, examples INTEGER, created TEXT NOT NULL);
CREATE UNIQUE INDEX labels_of ON labels (dictionary, feature, same);
CREATE TABLE scores (
    label INTEGER NOT NULL REFERENCES labels(id) ON DELETE CASCADE, method TEXT NOT NULL, auc REAL NOT NULL,
    low REAL NOT NULL, high REAL NOT NULL, firing INTEGER NOT NULL, silent INTEGER NOT NULL, model TEXT,
    created TEXT NOT NULL, PRIMARY KEY (label, method)) WITHOUT ROWID;
CREATE TABLE facts (
    dictionary INTEGER NOT NULL REFERENCES dictionaries(id), feature INTEGER NOT NULL, positive TEXT NOT NULL,
    negative TEXT NOT NULL, max_activation REAL, PRIMARY KEY (dictionary, feature)) WITHOUT ROWID;
CREATE TABLE done (
    dictionary INTEGER NOT NULL REFERENCES dictionaries(id), part TEXT NOT NULL, PRIMARY KEY (dictionary, part))
    WITHOUT ROWID;
CREATE VIEW labels_indexed AS SELECT id, text, 'd' || dictionary AS place FROM labels;
CREATE VIRTUAL TABLE labels_text USING fts5(
    text, place, content='labels_indexed', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2');
INSERT INTO labels_text (labels_text, rank) VALUES ('rank', 'bm25(1.0, 0.0)');
CREATE TRIGGER labels_added AFTER INSERT ON labels BEGIN
    INSERT INTO labels_text (rowid, text, place) VALUES (new.id, new.text, 'd' || new.dictionary); END;
CREATE TRIGGER labels_removed AFTER DELETE ON labels BEGIN
    INSERT INTO labels_text (labels_text, rowid, text, place)
    VALUES ('delete', old.id, old.text, 'd' || old.dictionary); END;
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open the store, made if need be; transactions are the caller's (``BEGIN IMMEDIATE``).

    Raises:
        InputError: another program's file, or a store of a newer gemlens.
        OutputError: it cannot be written.
    """
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    try:
        with told(path):
            _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    if _version(connection, path) == 0:
        # Two processes may both find an empty file; the second waits here, and then finds the tables.
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if _version(connection, path) == 0:
                for statement in _statements(_TABLES):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    # A commit survives a kill of the process either way; at worst the last ones are lost with the machine's power.
    connection.execute("PRAGMA synchronous = NORMAL")


def _version(connection: sqlite3.Connection, path: Path) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version > SCHEMA and application == _APPLICATION:
        raise InputError(
            f"{path} is a label store of a newer gemlens (version {version}; this one knows {SCHEMA}): update gemlens, "
            "or set GEMLENS_DATA to another folder"
        )
    if application != _APPLICATION and (tables or application or version):
        raise InputError(
            f"{path} is another program's database, not a label store; move it, or set GEMLENS_DATA to another folder"
        )
    return version


def _statements(script: str) -> Iterator[str]:
    """The single statements of a script; ``executescript`` would commit the transaction first."""
    held = ""
    for line in script.splitlines(keepends=True):
        held += line
        if sqlite3.complete_statement(held):
            yield held
            held = ""


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system say into one line that names the file."""
    try:
        yield
    except GemlensError:
        raise
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise OutputError(
                f"another process has been writing to {path} for {_PATIENCE:.0f} s; run this again when it is done"
            ) from error
        if "no such module: fts5" in str(error):
            raise InputError(
                "this Python's SQLite has no FTS5; take a Python from python.org or your system"
            ) from error
        raise OutputError(
            f"cannot use {path}: {error}; free some space, or set GEMLENS_DATA to a folder that can be written"
        ) from error
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{path} is damaged, or no label store ({error}); move it away, and import or download the labels again"
        ) from error
    except OSError as error:
        raise OutputError(
            f"cannot use {path}: {error.strerror or error}; set GEMLENS_DATA to a folder that can be written"
        ) from error


def is_store(path: Path) -> bool:
    """Whether there is one; reading labels where none were ever stored makes no file."""
    with suppress(OSError):
        return path.is_file() and path.stat().st_size > 0
    return False

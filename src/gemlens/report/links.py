"""Links out of a report."""

from __future__ import annotations

import re

from gemlens.records import DictionaryInfo

__all__ = ["neuronpedia_page"]

_SOURCE = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def neuronpedia_page(dictionary: DictionaryInfo) -> str | None:
    """Return the page that feature numbers are appended to, or None where no id is known.

    An id that is not plainly ``model/source`` gives None too: ids can come from files of other people.
    """
    source = dictionary.neuronpedia
    if source is None or not _SOURCE.fullmatch(source):
        return None
    return f"https://www.neuronpedia.org/{source}/"

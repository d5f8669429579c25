"""What can go wrong in a search; every text is one line."""


class SearchError(Exception):
    """A search that cannot go on."""


class BusyError(SearchError):
    """A directory in which a search is at work."""


class TrialError(SearchError):
    """A run that failed for a reason other than its radius."""


class MisuseError(ValueError):
    """Arguments of ``fairseq-train`` that cannot be searched with; names the flag."""

"""What can go wrong with experiments; every text is one line."""

from fairseq_sam import FairseqSamError


class ExperimentError(FairseqSamError):
    """Work that cannot go on."""


class BusyError(ExperimentError):
    """A directory in which something is at work."""


class OtherSettingsError(ExperimentError):
    """A directory of runs that were made in another way."""


class JobError(ExperimentError):
    """A job that failed."""


class MisuseError(FairseqSamError, ValueError):
    """A command line that cannot be worked with; names the flag."""

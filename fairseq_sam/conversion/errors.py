"""The error of this package."""


class ConversionError(Exception):
    """Something that cannot be converted; the text is one line that names it."""

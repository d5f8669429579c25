"""Files of any kind, read and written with care; standard library only."""

"""placeholder"""
MADE_CASES = []
REFUSED = []

"""One module per folder of recorded cases: which call of the kit makes which quantity."""

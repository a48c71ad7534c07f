"""One repeatable script per data set: ``python -m data_prep voc --root DATA``; ``--check`` looks and changes nothing."""

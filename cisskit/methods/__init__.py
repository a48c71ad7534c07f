"""One file, one paper. `cisskit.method.available()` lists what is here."""

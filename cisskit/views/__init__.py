"""Pictures and tables of runs. A view takes arrays or runs, draws, and returns what it drew; it never trains.

    style       colours (one per method, one per kind of error), class legends, grids of small pictures
    tables      runs by method and seed; the results table, the table of one chain, the files of a run
    forgetting  curves and heat maps over steps: mIoU, IoU per class, forgetting, background shift
    pseudo_labels  can the old model be trusted as a teacher: precision and recall, reliability, thresholds
    background_shift  what "background" really is at a step, and how much probability moves into it
    features    feature space in a plane that stays put, drift, rows of the classifier
    attribution what a class score rests on, by Captum, for the old model and the new
    scenarios   which image belongs to which step and what it tells; one matrix under every protocol
    four_pixels every loss by hand
    card        a data set: samples, classes, sizes
    training    loss curves and the terms of one batch
    masks       pictures with labels: what a step is told, what a teacher says, what a model makes of it
    reasoning   DKD's evidence for and against a class
    regions     IDEC: what becomes of each pixel, thresholds, regions in feature space; what a mode trains
    invariance  LAG: semantic-invariant and sample-specific channels, what an uncertainty rule accepts, prototypes
    tokens      MBS and AMIS: ignored pixels, trusted patches, angles of class tokens, who reads the global token
    report      the sections of notebooks/report.ipynb, the page around them, the picture of the README

Functions with an ``ax`` draw on it and return it; the others return a Figure that pyplot does not know, so a notebook
shows it once, as the value of its cell, and nothing has to be closed. Axes are in percent, and means name their classes.
"""

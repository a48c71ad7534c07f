"""cisskit: class-incremental semantic segmentation, notebook first."""

__version__ = "0.1.0"

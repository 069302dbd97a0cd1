"""The commands: ``main.py`` trains and evaluates; ``pipelines.py`` says who runs what."""

__version__ = "0.1.0"

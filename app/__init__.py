"""Movie Recommender: the rooms of the offline trainer and of the online service."""

__version__ = "0.1.0"

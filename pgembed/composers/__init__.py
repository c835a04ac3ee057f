"""Training composers: triplets of a reference, a change in words and a target -> a folder that ``composer:`` reads."""

from pgembed.composers.training import Trained, train_composer

__all__ = ["Trained", "train_composer"]

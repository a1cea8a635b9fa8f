"""Prompts, classification and segmentation without labels."""

from grafalign.zeroshot.classify import class_scores, photo_prior
from grafalign.zeroshot.prompts import class_vectors
from grafalign.zeroshot.segment import segment

__all__ = ['class_scores', 'class_vectors', 'photo_prior', 'segment']

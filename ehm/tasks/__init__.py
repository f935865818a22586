"""Downstream tasks of a pretrained encoder: fine-tuning, linear probing, nearest neighbours, evaluation."""

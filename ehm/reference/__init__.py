"""The arithmetic of ehm in NumPy and float64, with which every framework and device has to agree.

Encoders, objectives, AdamW, trees and masks, each written from its formula and not for speed. Parameters are those of
checkpoints, under timm's names.
"""

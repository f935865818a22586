"""The model that commands train in tests, as settings."""

TINY = {
    "encoder": "vit_tiny",
    "image_size": 32,
    "patch_size": 8,
    "model.width": 48,
    "model.depth": 2,
    "model.heads": 2,
    "model.decoder_width": 32,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "mask.blocks": 2,
}

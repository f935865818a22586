"""The model that commands train in tests, and how, as settings."""

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
    "watch.pictures": 0,  # a page takes longer than the training
}

RUN = {
    "optim.batch_size": 4,
    "optim.epochs": 2,
    "optim.warmup_epochs": 1,
    "optim.base_lr": 0.05,
    "optim.dtype": "float32",
    "data.workers": 0,
    "run.trackers": "[]",
    "run.log_every": 1,
}

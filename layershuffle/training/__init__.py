"""Training: the LightningModule, its callbacks and loggers, resuming, and training in several processes."""

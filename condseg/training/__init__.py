"""Training: the LightningModule, schedules, callbacks, run folders."""

"""Fine-tuning from a checkout: data, augmentation, optimisation, one loop, one short script per job."""

"""Training by the engines of others: Trainer, DDP, FSDP2, accelerate, peft."""

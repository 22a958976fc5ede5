"""Fine-tunes the target with Ray Train and DeepSpeed ZeRO."""

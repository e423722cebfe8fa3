"""The reader under other trainers' loops: torch's DataLoader, torchdata, Hugging Face, mmengine. One module each."""

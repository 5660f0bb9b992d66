"""What a fine-tuning step minimises, and which layers learn how fast."""

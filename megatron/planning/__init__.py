"""What a run will take before it starts: memory, communication and time of every layout. Computed, not measured."""

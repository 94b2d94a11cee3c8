"""What trains or changes weights in torch: a checkpoint in, a checkpoint out."""

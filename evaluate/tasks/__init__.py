"""What is measured on features: each task is matrix algebra and hands back a Score."""

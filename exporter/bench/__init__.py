"""What is measured. Knows a Runner and numbers, and no format."""

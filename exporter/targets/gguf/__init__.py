"""targets/gguf"""

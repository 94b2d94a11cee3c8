"""targets/tensorrt"""

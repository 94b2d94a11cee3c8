"""stages/dequantize"""

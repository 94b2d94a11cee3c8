"""targets/onnx"""

"""targets/onnx_graph"""

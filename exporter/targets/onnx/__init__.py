"""ONNX for ONNX Runtime and its clients: a float graph, and a pass over it for each precision.

In: a float checkpoint. Out: a folder that ONNX Runtime's clients open: onnx/model.onnx, configuration, tokenizer.
Read first: target.py, then layout.py; the float graph and the operators of schemes are in onnx_graph.
"""

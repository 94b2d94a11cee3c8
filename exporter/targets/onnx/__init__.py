"""ONNX for ONNX Runtime and its clients: a float graph, and a pass over it for each precision.

In: a float checkpoint. Out: model.onnx with configuration and tokenizer.
Read first: target.py; the float graph and the operators of schemes are in onnx_graph.
"""

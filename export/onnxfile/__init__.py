"""The ONNX file of encoders and encoder-decoders: the float graph, codes put into it, read back."""

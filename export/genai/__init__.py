"""The graph of onnxruntime-genai and OpenVINO: the builder is given floats, and its matrices are replaced by codes."""

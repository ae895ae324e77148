"""Export formats: folders, stock classes, reward models and ONNX."""

"""What a machine takes for what: times of nodes, measured by onnxruntime's own profiler, and what follows from them."""

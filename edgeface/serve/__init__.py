"""A service over HTTP and gRPC: own API, KServe V2, CompreFace's and DeepStack's paths (extra ``serve``)."""

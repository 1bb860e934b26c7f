"""A service over HTTP: own API, KServe V2 and CompreFace's paths (extra ``serve``)."""

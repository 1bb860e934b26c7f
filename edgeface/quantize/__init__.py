"""An FP32 IR and photographs in, a smaller and faster IR out that is proven not to have lost accuracy, or none."""
